"""Which embedding sets a row holds, and which sets each slot has. Stored, and verified at open.

What decides the row's bytes may not differ from one opening to the next: the names, widths, types
and optimizers of the sets, and which of them a slot has. A learning rate, epsilon or initial scale
may. Sets lie in the row in order of name. A slot has a number, given when it is first named and
never given again: rows carry it, so admission, expiry and audits know whose they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import LayoutMismatch, StoreMisuse

LAYOUT_VERSION: Final = 2
"""Of the row format drawn in `row.py`. Version 1 is the same with float32 and unnamed slots only,
and is read as such; another number on disk is refused, never guessed at."""
SLOT_NUMBER_MAX: Final = 65535
UNNAMED: Final = ""
"""The slot of rows that were looked up without one: number 0, all sets."""

Optimizer = Literal["rowwise_adagrad", "adagrad", "adam", "ftrl", "sgd"]
OPTIMIZERS: Final[tuple[str, ...]] = get_args(Optimizer)
DTYPES: Final = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSpec:
    """One embedding set: its width and how its vectors learn (formulas in `optimizers.py`)."""

    dim: int
    """Width of the vector."""
    optimizer: Optimizer = "rowwise_adagrad"
    lr: float = 0.05
    eps: float = 1e-8
    init_scale: float = 0.01
    """New vectors are uniform in [-init_scale, init_scale), drawn from the key alone."""
    beta1: float = 0.9
    """adam: decay of the first moment."""
    beta2: float = 0.999
    """adam: decay of the second moment."""
    l1: float = 0.0
    """ftrl: a coordinate whose |z| does not exceed this is exactly zero."""
    l2: float = 0.0
    """ftrl"""
    beta: float = 1.0
    """ftrl: added to sqrt(n) in the rate's denominator."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the vector in memory and on disk; optimizer state is always float32. bfloat16 is rounded
    stochastically, by bits drawn from the key and its count."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise StoreMisuse(f"a set needs at least one dimension: dim=`{self.dim}`")
        if self.optimizer not in OPTIMIZERS:
            raise StoreMisuse(
                f"unknown optimizer: optimizer=`{self.optimizer}` expected `{list(OPTIMIZERS)}`"
            )
        if self.dtype not in DTYPES:
            raise StoreMisuse(f"unknown type: dtype=`{self.dtype}` expected `{list(DTYPES)}`")

    @property
    def state_floats(self) -> int:
        """float32 values of optimizer state beside the vector."""
        return {
            "rowwise_adagrad": 1,
            "adagrad": self.dim,
            "adam": 2 * self.dim + 1,
            "ftrl": 2 * self.dim,
            "sgd": 0,
        }[self.optimizer]

    def shape(self) -> dict[str, Any]:
        """The part that decides bytes."""
        return {"dim": self.dim, "dtype": self.dtype, "optimizer": self.optimizer}


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The sets of every row, in order of name, and the slots that rows may name."""

    sets: Mapping[str, SetSpec]
    slots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Slot -> the sets it has; () = all, also such as come later."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Slot -> its number, 1..65535. Given where stored ones are known; else in order of `slots`."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise StoreMisuse("a row needs at least one embedding set")
        object.__setattr__(self, "sets", dict(sorted(self.sets.items())))
        slots = {}
        for slot, names in self.slots.items():
            unknown = sorted(set(names) - set(self.sets))
            if slot == UNNAMED or unknown:
                raise StoreMisuse(
                    f"a slot needs a name and known sets: slot=`{slot}` unknown=`{unknown}` "
                    f"expected among `{list(self.sets)}`"
                )
            whole = set(names) == set(self.sets)
            slots[slot] = () if whole else tuple(sorted(set(names)))
        object.__setattr__(self, "slots", slots)
        numbers = dict(self.numbers)
        for slot in slots:
            numbers.setdefault(slot, 1 + max(numbers.values(), default=0))
        if max(numbers.values(), default=0) > SLOT_NUMBER_MAX:
            raise StoreMisuse(f"too many slots: slots=`{len(numbers)}` at most 65535 ever")
        object.__setattr__(self, "numbers", {slot: numbers[slot] for slot in slots})

    def slot_number(self, slot: str) -> int:
        """The number that rows of `slot` carry: 0 for "", otherwise one that never changes.

        Ask `store.layout`: only an opened store knows the numbers that were given before.
        """
        if slot == UNNAMED:
            return 0
        try:
            return self.numbers[slot]
        except KeyError:
            raise StoreMisuse(
                f"no such slot in the layout: slot=`{slot}` expected one of `{list(self.slots)}`"
            ) from None

    def slot_name(self, number: int) -> str:
        """The name behind a row's number; "" for 0. Raises StoreMisuse for one never given."""
        if number == 0:
            return UNNAMED
        for slot, given in self.numbers.items():
            if given == number:
                return slot
        raise StoreMisuse(f"no slot has this number: number=`{number}`")

    def sets_of(self, slot: str) -> tuple[str, ...]:
        """The sets that rows of `slot` have, in order of name."""
        return self.slots.get(slot, ()) or tuple(self.sets)

    def members(self, set_name: str) -> NDArray[np.bool_] | None:
        """bool[1 + greatest number]: whether a slot has the set; None if every one does."""
        lacking = [s for s in self.slots if set_name not in self.sets_of(s)]
        if not lacking:
            return None
        table = np.ones(1 + max(self.numbers.values()), np.bool_)
        table[[self.numbers[slot] for slot in lacking]] = False
        return table

    def check_slot_numbers(self, slots: NDArray[np.uint16], keys: int) -> None:
        """Raises StoreMisuse unless they are uint16[keys], all of them given out."""
        if slots.shape != (keys,) or slots.dtype != np.uint16:
            raise StoreMisuse(
                f"slot numbers of another shape or type: expected=`uint16[{keys}]` "
                f"came=`{slots.dtype}{list(slots.shape)}`"
            )
        greatest = max(self.numbers.values(), default=0)
        if keys and slots.max() > greatest:
            raise StoreMisuse(
                f"no slot has this number: number=`{slots.max()}` greatest=`{greatest}`"
            )

    def to_json(self) -> bytes:
        """What is stored: everything that decides the row's bytes, and nothing else."""
        return json.dumps(
            {
                "version": LAYOUT_VERSION,
                "sets": {name: spec.shape() for name, spec in self.sets.items()},
                "slots": {
                    slot: {"number": self.numbers[slot], "sets": list(names) or None}
                    for slot, names in self.slots.items()
                },
            },
            sort_keys=True,
        ).encode()

    @staticmethod
    def from_json(stored: bytes) -> RowLayout:
        """The stored layout, rates at their defaults. Raises LayoutMismatch if not one of ours."""
        try:
            told = json.loads(stored)
            if told["version"] not in {1, LAYOUT_VERSION}:
                raise ValueError(f"version {told['version']}")
            slots = told.get("slots", {})
            return RowLayout(
                {name: SetSpec(**shape) for name, shape in told["sets"].items()},
                {slot: tuple(of["sets"] or ()) for slot, of in slots.items()},
                {slot: of["number"] for slot, of in slots.items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            readable = f"layouts of version 1 to {LAYOUT_VERSION}"
            raise LayoutMismatch(stored.decode("utf-8", "replace"), readable) from error

    def adopt(self, stored: bytes) -> RowLayout:
        """This layout with the stored slots' numbers; slots that are new here come after them.

        Raises LayoutMismatch, showing both, unless rows written under `stored` fit this one.
        """
        known = RowLayout.from_json(stored)
        shapes = {name: spec.shape() for name, spec in self.sets.items()}
        same = shapes == {name: spec.shape() for name, spec in known.sets.items()}
        if not same or any(known.slots.get(s, n) != n for s, n in self.slots.items()):
            raise LayoutMismatch(stored.decode(), self.to_json().decode())
        return RowLayout(self.sets, {**known.slots, **self.slots}, known.numbers)

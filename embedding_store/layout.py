"""Which embedding sets a row holds. What decides the row's bytes is stored and verified at open.

A learning rate, epsilon or initial scale may differ from one opening to the next; the names, widths
and optimizers of the sets may not. Sets lie in the row in order of name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from embedding_store.errors import LayoutMismatch, StoreMisuse

LAYOUT_VERSION: Final = 1
"""Of the row format drawn in `row.py`; another number on disk is refused, never guessed at."""

STATE_FLOATS: Final = {"rowwise_adagrad": 1}
"""Optimizer -> float32 values of state beside a set's vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSpec:
    """One embedding set: its width and how its vectors learn."""

    dim: int
    """Width of the vector, float32."""
    optimizer: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    lr: float = 0.05
    eps: float = 1e-8
    init_scale: float = 0.01
    """New vectors are uniform in [-init_scale, init_scale), drawn from the key alone."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise StoreMisuse(f"a set needs at least one dimension: dim=`{self.dim}`")
        if self.optimizer not in STATE_FLOATS:
            raise StoreMisuse(
                f"unknown optimizer: optimizer=`{self.optimizer}` expected `{list(STATE_FLOATS)}`"
            )

    @property
    def state_floats(self) -> int:
        return STATE_FLOATS[self.optimizer]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The sets of every row, in order of name."""

    sets: Mapping[str, SetSpec]

    def __post_init__(self) -> None:
        if not self.sets:
            raise StoreMisuse("a row needs at least one embedding set")
        object.__setattr__(self, "sets", dict(sorted(self.sets.items())))

    def to_json(self) -> bytes:
        """What is stored: everything that decides the row's bytes, and nothing else."""
        sets = {name: {"dim": s.dim, "optimizer": s.optimizer} for name, s in self.sets.items()}
        return json.dumps({"version": LAYOUT_VERSION, "sets": sets}, sort_keys=True).encode()

    def verify(self, stored: bytes) -> None:
        """Raises LayoutMismatch, showing both, unless rows written under `stored` fit this one."""
        asked = self.to_json()
        if stored != asked:
            raise LayoutMismatch(stored.decode("utf-8", "replace"), asked.decode())

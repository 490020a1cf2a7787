"""The slots of a config as the trainer walks them: one plan per side, in an order of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from settings.config import IMPLICIT_SLOTS, Config

Side = Literal["user", "item", "context"]
SlotType = Literal["categorical", "multi", "numeric", "vector", "sequence", "similarity"]
SIDES: tuple[Side, ...] = ("user", "item", "context")
ITEM_TABLE = "item_id"
"""Slot whose rows a sequence's item ids share: an item means the same wherever it is seen."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot: its place in the tables and how its value is read."""

    name: str
    side: Side
    type: SlotType
    dim: int
    """Length of a vector's value; 0 for other types."""
    length_max: int
    encoder: Literal["bucket", "mnse"] = "bucket"
    """Of a number, likewise below."""
    bases: tuple[int, ...] = (2, 3)
    bits: int = 20
    scale: float = 1.0
    of: tuple[str, ...] = ()
    """The two features that a similarity compares."""


@dataclass(frozen=True, slots=True)
class SidePlan:
    """The slots of one tower: S in all, of which Sn numeric; V numbers of dense vectors in all."""

    side: Side
    slots: tuple[Slot, ...]

    def of_type(self, type_: SlotType) -> tuple[int, ...]:
        """Positions in `slots` of the slots of `type_`, ascending."""
        return tuple(i for i, slot in enumerate(self.slots) if slot.type == type_)

    @property
    def vector_dims(self) -> tuple[int, ...]:
        """Length of each vector slot, in the order of `of_type("vector")`."""
        return tuple(self.slots[i].dim for i in self.of_type("vector"))


@dataclass(frozen=True, slots=True)
class Plan:
    """Every side's slots, and what samples may be asked for."""

    sides: dict[Side, SidePlan]
    tasks: tuple[str, ...]
    domains: tuple[str, ...]
    """Known domains; position + 1 is a domain's index, 0 is every other domain."""

    @property
    def known(self) -> frozenset[str]:
        """Names that a sample's `features` may carry."""
        slots = [slot for side in self.sides.values() for slot in side.slots]
        compared = frozenset(name for slot in slots for name in slot.of)
        return compared | frozenset(slot.name for slot in slots) - frozenset(IMPLICIT_SLOTS)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every slot, side after side."""
        return tuple(slot for side in SIDES for slot in self.sides[side].slots)


def table_of(slot: Slot) -> str:
    """The slot whose rows the values of `slot` are."""
    return ITEM_TABLE if slot.type == "sequence" else slot.name


def plan_slots(config: Config) -> Plan:
    """The plan of `config`: implicit slots first, then the config's by name.

    By name and not in the file's order, so that moving lines of a config changes no weight.
    """
    slots = [Slot(name, side, "categorical", 0, 1) for name, side in IMPLICIT_SLOTS.items()]
    slots += [
        Slot(
            name,
            spec.side,
            spec.type,
            spec.dim or 0,
            spec.length_max,
            spec.encoder,
            spec.bases,
            spec.bits,
            spec.scale,
            spec.of,
        )
        for name, spec in sorted(config.slots.items())
    ]
    sides = {side: SidePlan(side, tuple(s for s in slots if s.side == side)) for side in SIDES}
    return Plan(sides, config.tasks, config.domains)

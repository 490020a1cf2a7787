"""What every model is: sets of rows in, logits out, and optionally towers and a cross vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from settings.config import ModelConfig
from trainer.parts.head import FirstOrder, Heads, Towers
from trainer.parts.sets import SHARED, RowSets, SlotVectors, Vectors
from trainer.parts.taps import Taps
from trainer.slots import Plan, Side
from trainer.tensors import BatchTensors, SideTensors

Rows = Mapping[str, Tensor]
"""Gathered rows {set: [U, d_set]}."""


@dataclass(slots=True)
class Output:
    """What one forward pass gives."""

    logits: Tensor
    """[B, T], as served."""
    cross: Tensor | None = None
    """CR [B, C]; None for a model that has none."""
    hidden: list[Tensor] | None = None
    """Input of each task's last linear layer, T times [B, h]; None where there is no such layer."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Further scalar terms of the loss, weighted already."""
    auxiliary: Tensor | None = None
    """Logits [B, T] of a model beside, trained by the same labels and never served."""
    teachers: Tensor | None = None
    """Logits of teachers, which `label_terms` trains; never served."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a step knows of its rows, for a model with label terms of its own."""

    labels: Tensor
    """[B, T]"""
    mask: Tensor
    """[B, T] 1 where the row teaches; 0 for rows drawn from the reservoir."""
    pairs: Tensor
    """int64 [P, 2] rows to compare, of one user each."""


class Model(nn.Module):
    """A model over sets of rows. Subclasses say which sets and representations they have."""

    is_deep: ClassVar[bool] = True
    """False for a model that is linear in its rows already: it gets no second linear term."""
    paired: ClassVar[bool] = False
    """Whether rows are compared with their user's in the reservoir; of the two tasks `at`."""
    at: list[int]

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """The sets that the store's rows need; one `shared` set unless overridden.

        Raises ConfigError for options that do not fit the plan.
        """
        del plan
        return RowSets({SHARED: config.embedding_dim})

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__()
        self.sets = self.row_sets(plan, config)
        self.slots = SlotVectors(plan, self.sets)
        self.tap = Taps()
        self.first: FirstOrder | None = None
        if config.first_order and self.is_deep:
            self.first = FirstOrder(self.sets.dims, plan, self.speaks(plan))

    @classmethod
    def speaks(cls, plan: Plan) -> Mapping[str, Sequence[str]]:
        """Set -> tasks that its linear term may speak for; a set that is not named: for all."""
        del plan
        return {}

    def first_order(self, slots: Vectors) -> Tensor | float:
        """The linear term [B, T] of {set: [B, F, d_set]}; 0 without [model] first_order."""
        return 0.0 if self.first is None else self.first(slots)

    @property
    def tower_dims(self) -> dict[Side, int]:
        """Width of UR ("user") and IR ("item"); empty for a model without towers."""
        return {}

    @property
    def cross_dim(self) -> int:
        """Width of CR; 0 for a model without one."""
        return 0

    @property
    def hidden_dim(self) -> int:
        """Width of each entry of `Output.hidden`; 0 for a model without hidden layers."""
        for name in ("heads", "towers"):
            part = getattr(self, name, None)
            if isinstance(part, Towers):
                return part.width
            if isinstance(part, Heads):
                return part.linear.in_features
        return 0

    def represent(self, side: Side, tensors: SideTensors, rows: Rows) -> Tensor:
        """UR or IR [B, tower_dims[side]] from that side's features alone."""
        raise NotImplementedError(f"{type(self).__name__} has no {side} tower")

    def label_terms(self, output: Output, said: Labels) -> dict[str, Tensor]:
        """Terms of the loss that need labels, beside cross entropy."""
        del output, said
        return {}

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits and whatever else the model has, from gathered rows."""
        raise NotImplementedError

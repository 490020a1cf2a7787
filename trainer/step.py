"""One step: read rows, predict with the state before this batch, then learn from it.

One forward pass serves both. The models have neither dropout nor batch statistics, so evaluation
mode is training mode, and the prediction is made before any weight moves. Numeric moments are read
by the pass and updated after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore
from settings.config import Config
from trainer.batch import F32, Batch, SidePart
from trainer.errors import TrainerError
from trainer.loss import batch_loss, loss_name, targets
from trainer.models.build import build_model, row_dim
from trainer.moments import Moments
from trainer.slots import SIDES, Plan, Side
from trainer.tensors import batch_tensors, side_tensors, to_device

SHARED = "shared"
I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def row_layout(config: Config) -> RowLayout:
    """The store's rows under `config`: one set, as wide as the model wants it."""
    spec = SetSpec(
        dim=row_dim(config),
        optimizer=config.optimizer.sparse,
        lr=config.optimizer.sparse_lr,
        eps=config.optimizer.sparse_eps,
        init_scale=config.optimizer.init_scale,
    )
    return RowLayout(sets={SHARED: spec})


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step says about its B samples, from the state before it."""

    logits: F32
    """[B, T], without the log-odds correction: as served."""
    cross: F32 | None
    """CR [B, C]"""
    rows_created: dict[str, int]
    """Slot -> rows that this batch was the first to ask for."""


class Learner:
    """Model, dense optimizer and numeric moments on top of a store's rows."""

    def __init__(self, plan: Plan, config: Config, store: EmbeddingStore) -> None:
        self.plan = plan
        self.device = torch.device(config.trainer.device)
        self.model = build_model(plan, config).to(self.device)
        self.adam = torch.optim.Adam(
            self.model.parameters(), lr=config.optimizer.dense_lr, fused=True
        )
        self.moments: dict[Side, Moments] = {
            side: Moments(len(side_plan.of_type("numeric")))
            for side, side_plan in plan.sides.items()
        }
        self._store = store
        self._loss = loss_name(config)
        self._slot_numbers = {
            slot: number for number, slot in enumerate(sorted(s.name for s in plan.slots))
        }

    def step(self, batch: Batch, *, now_ms: int) -> StepResult:
        """Predict and learn from a batch of one sample or more.

        Gradients of rows are summed per key; rows that the batch does not name do not change.
        """
        keys = np.concatenate([batch.parts[side].keys for side in SIDES])
        lookup = self._store.lookup(keys, now_ms=now_ms)
        rows = to_device(self._store.gather(lookup, SHARED), self.device).requires_grad_()
        tensors = batch_tensors(batch, lookup.inverse.astype(np.int64), self.moments, self.device)
        output = self.model(tensors, rows)
        positive, negative = targets(batch, self._loss)
        if positive.any() or negative.any():
            loss = batch_loss(
                output.logits,
                to_device(positive, self.device),
                to_device(negative, self.device),
                to_device(batch.log_keep_rate, self.device),
                self._loss,
            )
            if not torch.isfinite(loss):
                raise TrainerError(f"the loss is not finite: loss=`{loss.item()}`")
            self.adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            assert rows.grad is not None
            self._store.update(lookup, SHARED, rows.grad.cpu().numpy(), now_ms=now_ms)
            self.adam.step()
        for side in SIDES:
            self.moments[side].update(batch.parts[side].numeric)
        cross = None if output.cross is None else output.cross.detach().cpu().numpy()
        return StepResult(
            logits=output.logits.detach().cpu().numpy(),
            cross=cross,
            rows_created=self._count_created(batch, lookup.inverse, lookup.found),
        )

    def represent(self, side: Side, part: SidePart) -> F32:
        """UR or IR [B, D] of packed features from the state as it is now; creates no row."""
        vectors_of_keys, _ = self._store.peek(part.keys, SHARED)  # [N, D]; zeros if expired
        with torch.no_grad():
            own = np.arange(part.keys.size)
            tensors = side_tensors(part, own, self.moments[side], self.device)
            rows = to_device(vectors_of_keys, self.device)
            vectors = self.model.represent(side, tensors, rows)
        return cast(F32, vectors.cpu().numpy())

    def _count_created(self, batch: Batch, inverse: I32, found: Mask) -> dict[str, int]:
        """Slot -> keys not in the store before; a key of two slots counts for the later one."""
        if found.all():
            return {}
        numbers = []
        for side in SIDES:
            part = batch.parts[side]
            per_slot = part.lengths.reshape(len(part.plan.slots), part.rows).sum(1)
            codes = [
                self._slot_numbers[self._table(slot.type, slot.name)] for slot in part.plan.slots
            ]
            numbers.append(np.repeat(np.asarray(codes, np.int64), per_slot))
        slot_of_row = np.zeros(found.size, np.int64)
        slot_of_row[inverse] = np.concatenate(numbers)
        created = np.bincount(slot_of_row[~found], minlength=len(self._slot_numbers))
        return {name: int(created[n]) for name, n in self._slot_numbers.items() if created[n]}

    @staticmethod
    def _table(slot_type: str, name: str) -> str:
        return "item_id" if slot_type == "sequence" else name

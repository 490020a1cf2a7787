"""One step: read rows, predict with the state before this batch, then learn from it.

One forward pass serves both. The models have neither dropout nor batch statistics, so evaluation
mode is training mode, and the prediction is made before any weight moves. Numeric moments are read
by the pass and updated after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore, Lookup
from settings.config import Config
from settings.load import ConfigError
from settings.models import one_of
from trainer.batch import CORRECTION, F32, FINAL, I64, Batch, SidePart
from trainer.delayed import NuisanceHeads, matured, nuisance_loss, nuisance_of
from trainer.errors import TrainerError
from trainer.loss import NUISANCE_LOSSES, batch_loss, loss_name, served, targets, trains_on
from trainer.models.build import build_model, row_sets
from trainer.models.model import Labels, Output
from trainer.moments import Moments
from trainer.parts.rates import RATES, RunningRates, count_outcomes, rates_spec
from trainer.reservoir import Reservoir
from trainer.slots import SIDES, Plan, Side, plan_slots, table_of
from trainer.technique import Techniques
from trainer.tensors import BatchTensors, batch_tensors, side_tensors, to_device

NUISANCE, TECHNIQUES = "nuisance", "techniques"
NO_PAIRS: I64 = np.empty((0, 2), np.int64)
U16 = npt.NDArray[np.uint16]


def row_layout(config: Config) -> RowLayout:
    """The store's rows under `config`: the sets that the model wants, each with its optimizer."""
    plan, optimizer, ftrl = plan_slots(config), config.optimizer, config.model.lr
    wanted = row_sets(plan, config)
    for name in sorted(optimizer.sets):
        try:
            one_of(f"optimizer.sets, model {config.model.name!r}", name, sorted(wanted.dims))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    sparse = {
        name: SetSpec(dim=dim, **optimizer.of_set(name))
        for name, dim in wanted.dims.items()
        if name not in wanted.ftrl or name in optimizer.sets
    }
    linear = {
        name: SetSpec(
            dim=wanted.dims[name],
            optimizer="ftrl",
            lr=ftrl.alpha,
            beta=ftrl.beta,
            l1=ftrl.l1,
            l2=ftrl.l2,
            init_scale=0.0,
        )
        for name in wanted.ftrl
        if name not in sparse
    }
    slots = {table: wanted.of_slot(table) for table in sorted(map(table_of, plan.slots))}
    sets = sparse | linear
    if config.technique.running_rates:
        sets[RATES] = rates_spec(len(plan.tasks))
        slots = {slot: (*names, RATES) for slot, names in slots.items()}
    return RowLayout(sets=sets, slots=slots)


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
        self.model = build_model(plan, config)
        self._loss = loss_name(config)
        self._heads: NuisanceHeads | None = None
        if self._loss in NUISANCE_LOSSES:
            self._heads = NuisanceHeads([self.model.hidden_dim] * len(plan.tasks))
            self.model.add_module(NUISANCE, self._heads)  # one optimizer, durable as one
        self.techniques = Techniques(
            config.technique,
            store,
            tasks=len(plan.tasks),
            hidden_dim=self.model.hidden_dim,
            calibrated=self._loss == "plain",
        )
        self.model.add_module(TECHNIQUES, self.techniques)
        self._sets = list(self.model.sets.dims)
        self._rates: RunningRates | None = None
        if config.technique.running_rates:
            self._rates = RunningRates(plan, config.technique.rates_dim)
            self.model.add_module(RATES, self._rates)
            self._sets.append(RATES)
        self._reservoir: Reservoir | None = None
        if self.model.paired:
            self._reservoir = Reservoir(store, plan, self.model.at)
        self.model.to(self.device)
        self.adam = torch.optim.Adam(
            self.model.parameters(), lr=config.optimizer.dense_lr, fused=True
        )
        self.moments: dict[Side, Moments] = {
            side: Moments(len(side_plan.of_type("numeric")))
            for side, side_plan in plan.sides.items()
        }
        self._store = store
        self._on_device = self.device.type != "cpu"
        self._elapsed_ms = config.join.elapsed

    def step(
        self,
        batch: Batch,
        *,
        now_ms: int,
        ahead: Batch | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> StepResult:
        """Predict and learn from a batch of one sample or more.

        The cold rows of `ahead`, the batch to come, are read from disk meanwhile; `meanwhile` is
        called before the backward pass, which leaves the interpreter to other threads.
        Gradients of rows are summed per key; rows that the batch does not name do not change.
        """
        own, pairs = len(batch), NO_PAIRS
        if self._reservoir is not None:
            taught = trains_on(self._loss, batch.state) & (batch.state != CORRECTION)
            batch, pairs = self._reservoir.draw(batch, taught)
        keys = np.concatenate([batch.parts[side].keys for side in SIDES])
        slots = self._slots_of(batch)
        lookup = self._store.lookup(keys, slots=slots, now_ms=now_ms)
        rows = {
            name: self._gather(lookup, name).requires_grad_(name != RATES) for name in self._sets
        }
        if ahead is not None:
            self._store.prefetch(np.concatenate([ahead.parts[side].keys for side in SIDES]))
        tensors = batch_tensors(batch, lookup.inverse.astype(np.int64), self.moments, self.device)
        output = self._forward(tensors, rows)
        raw = output.logits.detach()[:own]
        logits = served(self.techniques.served(raw).detach(), self._loss).cpu().numpy()
        self.techniques.explore(output, batch, own)
        loss = self._loss_of(batch, output, pairs)
        if loss is not None:
            if not torch.isfinite(loss):
                raise TrainerError(f"the loss is not finite: loss=`{loss.item()}`")
            self.adam.zero_grad(set_to_none=True)
            meanwhile()
            # Letting go of what a layer saved takes the interpreter's lock, layer by layer, and
            # `meanwhile` has just begun to use it; so all of it goes with the loss, afterwards. A
            # device has less memory to spare than the time is worth.
            loss.backward(retain_graph=not self._on_device)  # type: ignore[no-untyped-call]
            for name, gathered in rows.items():
                if gathered.grad is not None:  # none in a batch for the nuisance heads alone
                    grad = gathered.grad if self._on_device else gathered.grad.numpy()
                    self._store.update(lookup, name, grad, now_ms=now_ms)
            self.adam.step()
        for side in SIDES:
            self.moments[side].update(batch.parts[side].numeric[:own])
        cross = None if output.cross is None else output.cross.detach()[:own].cpu().numpy()
        return StepResult(
            logits=logits,
            cross=cross,
            rows_created=self._count_created(lookup),
        )

    def count(self, finals: Batch, *, now_ms: int) -> None:
        """Count what became of matured impressions, for the predictions to come."""
        if self._rates is None:
            return
        keys = np.concatenate([finals.parts[side].keys for side in SIDES])
        lookup = self._store.lookup(keys, slots=self._slots_of(finals), now_ms=now_ms)
        added = count_outcomes(finals, lookup.inverse, len(lookup.keys))
        self._store.update(lookup, RATES, -added, now_ms=now_ms)  # w - 1.0 * -added
        kept = finals.kept
        totals = [kept.sum(), *finals.labels[kept].sum(0)]
        self._rates.add(to_device(np.asarray(totals, np.float64), self.device))

    def _forward(self, tensors: BatchTensors, rows: dict[str, Tensor]) -> Output:
        output: Output = self.model(tensors, rows)
        if self._rates is not None:
            output.logits = output.logits + self._rates(tensors, rows[RATES])
        return output

    def _gather(self, lookup: Lookup, set_name: str) -> Tensor:
        """[U, D] on the device; where the slab lies there too, no row crosses the bus."""
        if self._on_device:
            return self._store.gather_tensor(lookup, set_name)
        return torch.from_numpy(self._store.gather(lookup, set_name))

    def _loss_of(self, batch: Batch, output: Output, pairs: I64) -> Tensor | None:
        """The batch's whole loss; None if nothing in it teaches."""
        positive, negative = targets(batch, self._loss)
        terms: list[Tensor] = []
        nuisance = None
        if self._heads is not None:
            said = self._heads(output.logits, output.hidden)
            nuisance = nuisance_of(said, batch)
            if (batch.state == FINAL).any():
                terms.append(nuisance_loss(said, matured(batch, self._elapsed_ms, self.device)))
        if positive.any() or negative.any():
            said_of = (to_device(positive, self.device), to_device(negative, self.device))
            keep = to_device(batch.log_keep_rate, self.device)
            weighted = said_of
            weights = self.techniques.weights(batch)
            if weights is not None:
                by_row = to_device(weights, self.device).unsqueeze(1)
                weighted = (said_of[0] * by_row, said_of[1] * by_row)
            for logits in (self.techniques.biased(output.logits, batch), output.auxiliary):
                if logits is not None:
                    terms.append(
                        batch_loss(
                            logits, weighted[0], weighted[1], keep, self._loss, nuisance=nuisance
                        )
                    )
            terms += output.terms.values()
            terms += self.techniques.terms(output, batch, said_of)
            labels = Labels(
                to_device(batch.labels, self.device),
                to_device(batch.mask, self.device) * ((said_of[0] + said_of[1]) > 0),
                to_device(pairs, self.device),
            )
            terms += self.model.label_terms(output, labels).values()
        return torch.stack(terms).sum() if terms else None

    def predict(self, batch: Batch) -> F32:
        """Logits [B, T] as served, from the state as it is now; learns nothing, creates no row.

        A value that has no row has a vector of zeros.
        """
        keys = np.concatenate([batch.parts[side].keys for side in SIDES])
        with torch.no_grad():
            rows = {
                name: to_device(self._store.peek(keys, name)[0], self.device) for name in self._sets
            }
            tensors = batch_tensors(batch, np.arange(keys.size), self.moments, self.device)
            logits = served(self._forward(tensors, rows).logits, self._loss)
        return cast(F32, logits.cpu().numpy())

    def represent(self, side: Side, part: SidePart) -> F32:
        """UR or IR [B, D] of packed features from the state as it is now; creates no row."""
        with torch.no_grad():
            own = np.arange(part.keys.size)
            tensors = side_tensors(part, own, self.moments[side], self.device)
            rows = {  # {set: [N, D]}; zeros if expired
                name: to_device(self._store.peek(part.keys, name)[0], self.device)
                for name in self.model.sets.dims
            }
            vectors = self.model.represent(side, tensors, rows)
        return cast(F32, vectors.cpu().numpy())

    def _slots_of(self, batch: Batch) -> U16:
        """[N] number of each key's slot, in the order of the batch's keys."""
        numbers = []
        for side in SIDES:
            part = batch.parts[side]
            per_slot = part.lengths.reshape(len(part.plan.slots), part.rows).sum(1)
            codes = [self._store.layout.slot_number(table_of(slot)) for slot in part.plan.slots]
            numbers.append(np.repeat(np.asarray(codes, np.uint16), per_slot))
        return np.concatenate(numbers)

    def _count_created(self, lookup: Lookup) -> dict[str, int]:
        """Slot -> rows that the lookup created."""
        created = np.bincount(lookup.slot_numbers[~lookup.found & lookup.admitted])
        name = self._store.layout.slot_name
        return {name(number): int(n) for number, n in enumerate(created) if n}

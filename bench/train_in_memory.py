"""The learning of `bench train` without log, evaluation, entities or durability."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from train_log import known_keys

from settings.config import Config
from topics.sample import decode_sample
from trainer.batch import Batch, build_batch
from trainer.loss import batch_loss, loss_name, targets
from trainer.models.build import build_model
from trainer.models.model import Model
from trainer.moments import Moments
from trainer.parts.sets import SHARED
from trainer.slots import SIDES, plan_slots
from trainer.tensors import BatchTensors, batch_tensors, to_device

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Seconds:
    """By the clock, and of this thread's processor time."""

    wall: float
    processor: float

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.processor - other.processor)


def now() -> Seconds:
    """Of both clocks."""
    return Seconds(time.perf_counter(), time.thread_time())


@dataclass(frozen=True, slots=True)
class Ready:
    """All batches as tensors; `rows` [U] of each are row numbers in `table` [K, D]."""

    batches: list[tuple[BatchTensors, Tensor, Tensor, Tensor, Tensor]]
    """(features, rows, positive [B, T], negative [B, T], log keep rate [B])"""
    table: Tensor


def prepare(config: Config, lines: list[bytes], table: Tensor, size: int) -> Ready:
    """Everything that the trainer computes before its model, once and untimed."""
    plan, loss = plan_slots(config), loss_name(config)
    known = known_keys(lambda _: 0)[0]
    order = np.argsort(known)
    moments = {side: Moments(len(plan.sides[side].of_type("numeric"))) for side in SIDES}
    ready: list[tuple[BatchTensors, Tensor, Tensor, Tensor, Tensor]] = []
    for start in range(0, len(lines), size):
        batch: Batch = build_batch([decode_sample(x) for x in lines[start : start + size]], plan)
        keys = np.concatenate([batch.parts[side].keys for side in SIDES])
        numbers = order[np.searchsorted(known, keys, sorter=order)]
        # In order of first appearance, as the store numbers them: sums then run in its order.
        _, first, sorted_place = np.unique(numbers, return_index=True, return_inverse=True)
        rows = numbers[np.sort(first)]
        inverse = np.argsort(np.argsort(first))[sorted_place]
        tensors = batch_tensors(batch, inverse.astype(np.int64), moments, CPU)
        for side in SIDES:
            moments[side].update(batch.parts[side].numeric)
        positive, negative = (to_device(part, CPU) for part in targets(batch, loss))
        keep = to_device(batch.log_keep_rate, CPU)
        ready.append((tensors, torch.from_numpy(rows), positive, negative, keep))
    return Ready(ready, table)


def learn(config: Config, ready: Ready) -> tuple[Seconds, dict[str, Tensor]]:
    """(seconds, dense weights) of the same learning with everything in memory."""
    loss = loss_name(config)
    model: Model = build_model(plan_slots(config), config)
    adam = torch.optim.Adam(model.parameters(), lr=config.optimizer.dense_lr, fused=True)
    table, state = ready.table.clone(), torch.zeros(len(ready.table))
    lr, eps = config.optimizer.sparse_lr, config.optimizer.sparse_eps
    started = now()
    for features, numbers, positive, negative, keep in ready.batches:
        rows = table.index_select(0, numbers).requires_grad_()
        output = model(features, {SHARED: rows})
        adam.zero_grad(set_to_none=True)
        torch.autograd.backward(batch_loss(output.logits, positive, negative, keep, loss))
        grad = rows.grad
        assert grad is not None
        total = state.index_select(0, numbers) + grad.square().mean(1)
        state.index_copy_(0, numbers, total)
        step = grad * (lr / (total.sqrt() + eps)).unsqueeze(1)
        table.index_copy_(0, numbers, rows.detach() - step)
        adam.step()
    return now() - started, dict(model.state_dict())

"""The trainer over a file of samples, against the same learning on tensors that lie in memory.

`trainer`: the stream's own loop: decode, batch, predict, score, learn, and a synced commit of the
store every ten steps. `in_memory`: the same model, the same batches as ready tensors, the same
rows in one torch table with the same row-wise Adagrad, dense Adam; no log, no evaluation, no
per-entity state, no durability. Both end with the same weights (`dense_weights_max_difference`).
One thread each.
"""

from __future__ import annotations

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as the trainer sets it, before torch loads

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from measuring import config_of, ratio, run_benchmark, say, spread
from torch import Tensor

from embedding_store.store import EmbeddingStore
from runtime.sources.simulated import SimulatedTraffic
from settings.config import Config
from topics.sample import decode_sample
from trainer.batch import Batch, build_batch
from trainer.loop import Loop
from trainer.loss import batch_loss, loss_name, targets
from trainer.models.build import build_model
from trainer.models.model import Model
from trainer.moments import Moments
from trainer.parts.sets import SHARED
from trainer.slots import SIDES, plan_slots
from trainer.source import FileSource
from trainer.step import row_layout
from trainer.tensors import BatchTensors, batch_tensors, to_device

BATCH = 512
START_MS = 1_700_000_000_000
CPU = torch.device("cpu")


def measure(quick: bool) -> dict[str, Any]:
    """Every key of the report; see the module."""
    torch.set_num_threads(1)
    samples, rounds = (BATCH * 20, 3) if quick else (BATCH * 160, 5)
    source = SimulatedTraffic(
        start_ms=START_MS, faults=False, impressions_max=samples, users=20_000, items=5_000
    )
    config = config_of(
        source.config_values(),
        join__policy="wait",
        model__name="lfm4ads",
        trainer__batch_samples_max=BATCH,
        trainer__cut_by="count",
    )
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        path = Path(folder) / "samples.jsonl"
        _write_samples(source, config, path)
        say(f"{samples:,} samples are written; preparing tensors")
        ready = _prepare(config, path, Path(folder) / "first")
        _train(config, path, Path(folder) / "warm")
        _learn(config, ready)
        ours: list[float] = []
        bare: list[float] = []
        difference = 0.0
        for n in range(rounds):
            seconds, weights = _train(config, path, Path(folder) / f"store{n}")
            ours.append(samples / seconds)
            seconds, same = _learn(config, ready)
            bare.append(samples / seconds)
            difference = max(difference, _difference(weights, same))
            say(f"round {n + 1}: {ours[-1]:,.0f} against {bare[-1]:,.0f} samples/s")
    return {
        "ratio_in_memory": ratio(ours, bare)["median"],
        "samples_per_second": float(np.median(ours)),
        "in_memory_samples_per_second": float(np.median(bare)),
        "samples": samples,
        "batch": BATCH,
        "model": config.model.name,
        "slots": len(plan_slots(config).slots),
        "rows": len(ready.table),
        "threads": 1,
        "device": "cpu",
        "dense_weights_max_difference": difference,
        "rounds": {
            "ratio_in_memory": ratio(ours, bare),
            "trainer": spread(ours),
            "in_memory": spread(bare),
        },
        "not_run": {
            "kafka": "samples come from a file; reading them from a broker is not in the figure",
            "dcnv2": "the net is lfm4ads with the simulator's slots, batch 512, not DCNv2 at 4,096",
        },
    }


def _write_samples(source: SimulatedTraffic, config: Config, path: Path) -> None:
    """One `final` per impression, as policy `wait` gives them, in order of event time."""
    impressions: dict[str, dict[str, Any]] = {}
    for event in source.events():
        line = orjson.loads(event.line)
        if event.stream == "impressions":
            line |= {"produced_ms": line["event_ms"], "keep_rate": 1.0, "state": "final"}
            line |= {"elapsed_ms": config.window_ms_max, "revision": 0}
            line |= {"labels": dict.fromkeys(config.kinds, 0), "delays_ms": {}, "values": {}}
            impressions[line["impression_id"]] = line
            continue
        # The simulator names a conversion after its impression, even where the event does not.
        shown = impressions[line["conversion_id"].rpartition("-")[0]]
        delay_ms, kind = line["event_ms"] - shown["event_ms"], line["kind"]
        if delay_ms <= config.kinds[kind].window:
            shown["labels"][kind] = 1
            shown["delays_ms"][kind] = delay_ms
            if line["value"] is not None:
                shown["values"][kind] = line["value"]
    with path.open("wb") as file:
        file.writelines(orjson.dumps(line) + b"\n" for line in impressions.values())


def _train(config: Config, path: Path, folder: Path) -> tuple[float, dict[str, Tensor]]:
    """(seconds, dense weights) of the trainer over the file, from an empty store."""
    with EmbeddingStore.open(
        folder, row_layout(config), cache_rows_max=config.store.cache_rows_max, owner="bench"
    ) as store:
        loop = Loop(config, store, sink=None)
        source = FileSource(path, loop.progress.offsets)
        started = time.perf_counter()
        loop.run(source)
        seconds = time.perf_counter() - started
        source.close()
        return seconds, dict(loop._learner.model.state_dict())


@dataclass(frozen=True, slots=True)
class Ready:
    """All batches as tensors; `rows` [U] of each are row numbers in `table` [K, D]."""

    batches: list[tuple[BatchTensors, Tensor, Tensor, Tensor, Tensor]]
    """(features, rows, positive [B, T], negative [B, T], log keep rate [B])"""
    table: Tensor


def _prepare(config: Config, path: Path, folder: Path) -> Ready:
    """Everything that the trainer computes before its model, once and untimed."""
    plan, loss = plan_slots(config), loss_name(config)
    with path.open("rb") as file:
        samples = [decode_sample(line) for line in file]
    batches: list[Batch] = [
        build_batch(samples[n : n + BATCH], plan) for n in range(0, len(samples), BATCH)
    ]
    keys = [np.concatenate([batch.parts[side].keys for side in SIDES]) for batch in batches]
    known, numbers = np.unique(np.concatenate(keys), return_inverse=True)
    with EmbeddingStore.open(
        folder, row_layout(config), cache_rows_max=2 * len(known) + 1024, owner="bench"
    ) as store:
        lookup = store.lookup(known, now_ms=START_MS)  # rows start from their keys alone
        table = torch.from_numpy(store.gather(lookup, SHARED))
    moments = {side: Moments(len(plan.sides[side].of_type("numeric"))) for side in SIDES}
    ready: list[tuple[BatchTensors, Tensor, Tensor, Tensor, Tensor]] = []
    ends = np.cumsum([len(k) for k in keys])
    for batch, own in zip(batches, np.split(numbers, ends[:-1]), strict=True):
        # In order of first appearance, as the store numbers them: sums then run in its order.
        _, first, sorted_place = np.unique(own, return_index=True, return_inverse=True)
        rows = own[np.sort(first)]
        inverse = np.argsort(np.argsort(first))[sorted_place]
        tensors = batch_tensors(batch, inverse.astype(np.int64), moments, CPU)
        for side in SIDES:
            moments[side].update(batch.parts[side].numeric)
        positive, negative = (to_device(part, CPU) for part in targets(batch, loss))
        keep = to_device(batch.log_keep_rate, CPU)
        ready.append((tensors, torch.from_numpy(rows), positive, negative, keep))
    return Ready(ready, table)


def _learn(config: Config, ready: Ready) -> tuple[float, dict[str, Tensor]]:
    """(seconds, dense weights) of the same learning with everything in memory."""
    loss = loss_name(config)
    model: Model = build_model(plan_slots(config), config)
    adam = torch.optim.Adam(model.parameters(), lr=config.optimizer.dense_lr, fused=True)
    table, state = ready.table.clone(), torch.zeros(len(ready.table))
    lr, eps = config.optimizer.sparse_lr, config.optimizer.sparse_eps
    started = time.perf_counter()
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
    return time.perf_counter() - started, dict(model.state_dict())


def _difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max(
        float((ours[name] - theirs[name]).abs().max()) for name in ours if ours[name].numel()
    )


if __name__ == "__main__":
    run_benchmark("train", measure)

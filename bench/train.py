"""Kafka to committed parameters, against the same learning on tensors that lie in memory.

`trainer`: what `python -m trainer` does on a real broker: a process of its own reads and decodes
samples, the learner predicts, scores and learns, and commits rows, weights, offsets and evaluation
every ten batches. The last commit is inside the time. `in_memory`: the same model, the same batches
as ready tensors with their keys already de-duplicated, the same rows in one torch table with the
same row-wise Adagrad, dense Adam; no log, no evaluation, no per-entity state, no durability. Both
start from the same 1e6 rows and end with the same weights (`dense_weights_max_difference`). One
thread of torch each; the trainer's reading process, table builder and broker are on top of that, so
`in_memory_two_threads` is beside them. `ratio_in_memory_processor` is the same ratio by the
processor time of the two learning threads, which a busy machine changes little. `publishing` is
the trainer once more, with every version written to Kafka.
"""

from __future__ import annotations

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as the trainer sets it, before torch loads

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from confluent_kafka import Producer
from measuring import config_of, ratio, run_benchmark, say, spread
from torch import Tensor
from train_in_memory import Ready, Seconds, learn, now, prepare
from train_log import KEYS, config_values, known_keys, sample_lines

from embedding_store.store import EmbeddingStore
from runtime.broker import EmbeddedBroker
from settings.config import Config
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.names import SAMPLES
from topics.publisher import Publisher
from trainer import metrics
from trainer.feed_process import FeedProcess, kafka_order
from trainer.garbage import collect_rarely
from trainer.loop import Loop
from trainer.models.model import Model
from trainer.parts.sets import SHARED
from trainer.slots import plan_slots
from trainer.step import row_layout

BATCH = 4096
CREATE_AT_ONCE = 100_000


def measure(quick: bool) -> dict[str, Any]:
    """Every key of the report; see the module."""
    torch.set_num_threads(1)
    batches, rounds = (10, 2) if quick else (100, 5)
    samples = BATCH * batches
    config = config_of(
        config_values(),
        kafka__partitions=1,
        join__policy="wait",
        model__name="dcn",
        model__embedding_dim=16,
        model__dcn__cross_layers=3,
        model__dcn__hidden_dims=(256, 128),
        trainer__batch_samples_max=BATCH,
        trainer__cut_by="count",
        store__cache_rows_max=2_000_000,
    )
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as name:
        folder = Path(name)
        say(f"creating {KEYS:,} rows")
        table = _create_rows(config, folder / "rows")
        with EmbeddedBroker(folder / "broker") as broker:
            lines = list(sample_lines(samples))
            _produce(config, broker.bootstrap, lines)
            ready = prepare(config, lines, table, BATCH)
            del lines
            say(f"{samples:,} samples are in the log and as tensors")
            collect_rarely()
            rounds_of = _rounds(config, broker.bootstrap, folder, ready, rounds)
    ours, bare, publishing = (
        [samples / s for s in rounds_of[k]] for k in ("trainer", "in_memory", "publishing")
    )
    return {
        "ratio_in_memory": ratio(ours, bare)["median"],
        "ratio_in_memory_publishing": ratio(publishing, bare[: len(publishing)])["median"],
        "ratio_in_memory_processor": float(np.median(rounds_of["processor"])),
        "samples_per_second": float(np.median(ours)),
        "in_memory_samples_per_second": float(np.median(bare)),
        "in_memory_two_threads_samples_per_second": float(
            samples / np.median(rounds_of["in_memory_two_threads"])
        ),
        "samples": samples,
        "batch": BATCH,
        "model": config.model.name,
        "slots": len(plan_slots(config).slots),
        "rows": KEYS,
        "threads": 1,
        "device": "cpu",
        "dense_weights_max_difference": max(rounds_of["difference"]),
        "share_of_seconds": {
            stage: float(np.median(rounds_of[stage]))
            for stage in ("learning", "committing", "waiting")
        },
        "rounds": {
            "ratio_in_memory": ratio(ours, bare),
            "ratio_in_memory_processor": spread(rounds_of["processor"]),
            "trainer": spread(ours),
            "in_memory": spread(bare),
            "publishing": spread(publishing),
        },
    }


def _rounds(
    config: Config, bootstrap: str, folder: Path, ready: Ready, rounds: int
) -> dict[str, list[float]]:
    """Seconds (and shares of the trainer's) per round; the two take turns."""
    found: dict[str, list[float]] = {
        name: []
        for name in (
            *("trainer", "in_memory", "publishing", "in_memory_two_threads", "difference"),
            *("learning", "committing", "waiting", "processor"),
        )
    }
    _train(config, bootstrap, folder, "warm", publish=False)
    learn(config, ready)
    for n in range(rounds):
        before = [_stage_seconds(stage) for stage in ("train", "commit")]
        took, weights = _train(config, bootstrap, folder, f"store{n}", publish=False)
        seconds = took.wall
        learning, committing = (
            _stage_seconds(stage) - was
            for stage, was in zip(("train", "commit"), before, strict=True)
        )
        found["trainer"].append(seconds)
        found["learning"].append(learning / seconds)
        found["committing"].append(committing / seconds)
        found["waiting"].append(1 - (learning + committing) / seconds)
        bare, same = learn(config, ready)
        found["in_memory"].append(bare.wall)
        found["processor"].append(bare.processor / took.processor)
        found["difference"].append(_difference(weights, same))
        if n < max(1, rounds // 2):
            took, _ = _train(config, bootstrap, folder, f"published{n}", publish=True)
            found["publishing"].append(took.wall)
            torch.set_num_threads(2)
            found["in_memory_two_threads"].append(learn(config, ready)[0].wall)
            torch.set_num_threads(1)
        say(f"round {n + 1}: {found['trainer'][-1]:.1f} s against {found['in_memory'][-1]:.1f} s")
    return found


def _stage_seconds(stage: str) -> float:
    for family in metrics.STAGE.collect():
        for sample in family.samples:
            if sample.name.endswith("_sum") and sample.labels["stage"] == stage:
                return float(sample.value)
    return 0.0


def _create_rows(config: Config, folder: Path) -> Tensor:
    """A store with every key's row, committed; the same rows as a table [K, D]."""
    keys, slots = known_keys(row_layout(config).slot_number)
    with _opened(config, folder) as store:
        rows = []
        for start in range(0, len(keys), CREATE_AT_ONCE):
            chosen = slice(start, start + CREATE_AT_ONCE)
            lookup = store.lookup(keys[chosen], slots=slots[chosen], now_ms=1)
            rows.append(store.gather(lookup, SHARED)[lookup.inverse])
        store.commit()
        store.checkpoint(folder.with_name("checkpoint"))
    return torch.from_numpy(np.concatenate(rows))


def _opened(config: Config, folder: Path) -> EmbeddingStore:
    return EmbeddingStore.open(
        folder, row_layout(config), cache_rows_max=config.store.cache_rows_max, owner="bench"
    )


def _produce(config: Config, bootstrap: str, lines: list[bytes]) -> None:
    ensure_topics(config, bootstrap)
    settings = producer_settings(config, bootstrap) | {"queue.buffering.max.messages": 2_000_000}
    producer = Producer(settings)
    topic = config.topic(SAMPLES)
    for line in lines:
        producer.produce(topic, line, partition=0)
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("the broker did not take every sample")


def _train(
    config: Config, bootstrap: str, folder: Path, name: str, *, publish: bool
) -> tuple[Seconds, dict[str, Tensor]]:
    """(seconds, dense weights) of the trainer from the first record to the last commit."""
    target = folder / name
    with _opened(config, folder / "checkpoint") as store:
        store.checkpoint(target)
    sink = Publisher(config, bootstrap, f"bench-{name}") if publish else None
    with _opened(config, target) as store:
        _warm(store)
        loop = Loop(config, store, sink=sink)
        order = kafka_order(
            config, bootstrap, loop.progress.offsets, until_end=True, accept_gap=False
        )
        source = FeedProcess(order, loop.plan, lambda: False)
        started = now()
        loop.run(source)
        seconds = now() - started
        source.close()
        model: Model = loop.learner.model
        if sink is not None:
            sink.close()
        return seconds, dict(model.state_dict())


def _warm(store: EmbeddingStore) -> None:
    """Make every row hot, as it is after an hour of learning: the in-memory side begins so."""
    keys, slots = known_keys(store.layout.slot_number)
    for start in range(0, len(keys), CREATE_AT_ONCE):
        chosen = slice(start, start + CREATE_AT_ONCE)
        store.lookup(keys[chosen], slots=slots[chosen], now_ms=1)


def _difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max(
        float((ours[name] - theirs[name]).abs().max()) for name in ours if ours[name].numel()
    )


if __name__ == "__main__":
    run_benchmark("train", measure)

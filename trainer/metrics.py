"""The trainer's numbers for Prometheus. Never a user or an item as a label."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import Counter, Gauge, Histogram

from embedding_store.store import EmbeddingStore
from topics.names import Kind
from trainer.batch import CORRECTION, I64, Batch

_SECONDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    1.5,
    2,
    2.5,
    3,
    4,
    5,
    7.5,
    10,
    30,
    60,
)

STAGE = Histogram(
    "headwater_stage_latency_seconds",
    "Wall time of one stage: hold = what the join waited on purpose (elapsed, window), queue = "
    "from the join's emission to the trainer, train = one batch, "
    "commit, publish",
    ["stage"],
    buckets=_SECONDS,
)
QUEUE = STAGE.labels("queue")
FRESHNESS = Histogram(
    "headwater_representation_freshness_seconds",
    "From the produce time of the newest event in a vector to its transaction's commit",
    ["kind"],
    buckets=_SECONDS,
)
SAMPLES = Counter("headwater_trainer_samples", "Samples consumed", ["state"])
REJECTED = Counter("headwater_trainer_rejected", "Records of the source that are not samples")
SLOT_VALUES_REJECTED = Counter(
    "headwater_slot_values_rejected", "Values taken as missing", ["slot", "reason"]
)
STEPS = Counter("headwater_trainer_steps", "Batches learnt from")
VERSIONS = Counter("headwater_versions_published", "Versions published")
VECTORS = Counter("headwater_vectors_published", "Vectors published", ["kind"])
VERSION = Gauge("headwater_version", "Newest version published")
LAST_EVENT = Gauge("headwater_last_event_timestamp_seconds", "Newest event time learnt from")
LAST_PUBLISH = Gauge("headwater_last_publish_timestamp_seconds", "Wall time of the last version")
HELD = Gauge("headwater_publication_held", "1 while nothing new is published, by cause", ["cause"])
HOLDS = Counter("headwater_publication_holds", "Times that the gate has closed")
ROLLBACKS = Counter("headwater_rollbacks", "Old versions published again")
COMMANDS = Counter("headwater_commands", "Commands of an operator obeyed", ["verb"])
FORGOTTEN = Counter("headwater_users_forgotten", "Users removed from store and topics")
SUPPRESSED = Counter(
    "headwater_samples_suppressed", "Samples of forgotten users from before, passed over"
)
NE = Gauge("headwater_progressive_ne", "Progressive normalised entropy", ["task", "window"])
AUC = Gauge("headwater_progressive_auc", "Progressive AUC", ["task", "window"])
PCOC = Gauge(
    "headwater_progressive_pcoc", "Predicted over observed conversions", ["task", "window"]
)
SCORED = Gauge("headwater_progressive_samples", "Impressions scored", ["task", "window"])
POSITIVES = Gauge(
    "headwater_progressive_positives", "Scored impressions that converted", ["task", "window"]
)
ARM_NE = Gauge(
    "headwater_arm_ne", "Normalised entropy of an arm, same impressions", ["arm", "task"]
)
ARM_AUC = Gauge("headwater_arm_auc", "AUC of an arm, same impressions", ["arm", "task"])
DRIFTS = Counter("headwater_drift_alarms", "Alarms on a progressive metric", ["task", "measure"])
LAST_DRIFT = Gauge(
    "headwater_last_drift_timestamp_seconds", "Event time of the last alarm", ["task", "measure"]
)
ROWS = Gauge("headwater_store_rows", "Embedding rows", ["tier"])
ADMITTED = Gauge("headwater_store_rows_admitted", "Rows created since the process started")
EVICTED = Gauge("headwater_store_rows_evicted", "Rows moved from the slab to the disk since then")
REFUSED = Gauge(
    "headwater_store_rows_refused",
    "Keys without a row that admission gave none, once per batch, since the process started",
)
EXPIRED = Counter("headwater_store_rows_expired", "Rows deleted by expiry", ["slot"])
TOMBSTONES = Counter("headwater_tombstones_published", "Deletions of published vectors")
COMMIT = Histogram("headwater_commit_seconds", "Duration of the store's commit", buckets=_SECONDS)
CHECKPOINT_STALL = Histogram(
    "headwater_checkpoint_stall_seconds",
    "How long training waits for a checkpoint's hard links",
    buckets=_SECONDS,
)
LAST_CHECKPOINT = Gauge(
    "headwater_last_checkpoint_timestamp_seconds",
    "Wall time of the newest checkpoint; place = hard_links (the store's disk) or copy",
    ["place"],
)
CHECKPOINT_FAILURES = Counter(
    "headwater_checkpoint_failures",
    "Checkpoints that came to nothing; doing = completing or copying",
    ["doing"],
)


def observe_arrivals(batch: Batch, joined_ms: I64) -> None:
    """How long samples [B] waited: for the join on purpose, and between join and trainer."""
    known = joined_ms >= 0
    waited = np.maximum(time.time() * 1000 - joined_ms[known], 0.0) / 1000
    _observe_many(QUEUE, waited)
    # Deliberate, so kept apart from the other stages: the window, or join.elapsed.
    held = known & (batch.state != CORRECTION) & (batch.elapsed_ms > 0)
    hold = np.maximum(joined_ms[held] - batch.produced_ms[held], 0) / 1000
    _observe_many(STAGE.labels("hold"), hold)


def _observe_many(histogram: Histogram, seconds: npt.NDArray[np.float64]) -> None:
    """`histogram.observe` of each, as one step per bucket: the library's takes 2 us a value."""
    if not seconds.size:
        return
    buckets = np.searchsorted(np.asarray(_SECONDS, np.float64), seconds, side="left")
    for bucket, count in enumerate(np.bincount(buckets).tolist()):
        if count:
            histogram._buckets[bucket].inc(count)
    histogram._sum.inc(float(seconds.sum()))


def observe_store(store: EmbeddingStore) -> None:
    """Rows by tier and what moved between them."""
    stats = store.stats()
    ROWS.labels("hot").set(stats.rows_hot)
    ROWS.labels("cold").set(stats.rows_total - stats.rows_hot - stats.rows_spilled)
    ROWS.labels("spilled").set(stats.rows_spilled)
    ADMITTED.set(stats.rows_created)
    REFUSED.set(stats.rows_refused)
    EVICTED.set(stats.rows_evicted)


def observe_progressive(
    totals: Mapping[str, Mapping[str, float | int | None]], window: str
) -> None:
    """Metrics per task; undefined ones are NaN. `window` is "all" = since the store began, or
    "latest" = the newest two evaluation windows."""
    for task, report in totals.items():
        for gauge, name in (
            (NE, "ne"),
            (AUC, "auc"),
            (PCOC, "pcoc"),
            (SCORED, "samples"),
            (POSITIVES, "positives"),
        ):
            value = report[name]
            gauge.labels(task, window).set(float("nan") if value is None else value)


def observe_arms(
    totals: Mapping[str, Mapping[str, Mapping[str, float | int | None]]],
) -> None:
    """NE and AUC per arm and task; undefined ones are NaN."""
    for arm, tasks in totals.items():
        for task, report in tasks.items():
            for gauge, name in ((ARM_NE, "ne"), (ARM_AUC, "auc")):
                value = report[name]
                gauge.labels(arm, task).set(float("nan") if value is None else value)


def observe_published(version: int, produced_ms: Mapping[Kind, Sequence[int]]) -> None:
    """A version was committed just now; `produced_ms` of its vectors that got newer."""
    now = time.time()
    VERSIONS.inc()
    VERSION.set(version)
    LAST_PUBLISH.set(now)
    for kind, times in produced_ms.items():
        VECTORS.labels(kind).inc(len(times))
        observe = FRESHNESS.labels(kind).observe
        for produced in times:
            observe(max(0.0, now - produced / 1000))

"""One look at a running stack, from what its processes serve: for `status` and the demo."""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec

from runtime.run_state import RunState
from runtime.scrape import Scrape, page, scrape

TASK_METRICS = ("auc", "ne", "pcoc", "samples", "positives")


class Readout(msgspec.Struct, kw_only=True):
    """What was found at `at` (monotonic seconds). Counts are since the processes started."""

    at: float
    events: dict[str, dict[str, int]] = {}
    """stream -> verdict -> events that the join has judged."""
    learned: dict[str, int] = {}
    """sample state -> samples that the trainer has consumed."""
    lag_records: dict[str, int] = {}
    """consumer group -> records behind, over all its partitions."""
    lag_seconds: dict[str, float] = {}
    freshness_seconds: dict[str, dict[str, float]] = {}
    """kind of representation -> p50, p99, max, count, as the reader process saw them."""
    progressive: dict[str, dict[str, float | None]] = {}
    """task -> auc, ne, pcoc, samples, positives."""
    progressive_latest: dict[str, dict[str, float | None]] = {}
    """The same over the newest two evaluation windows: how good the model is now."""
    samples_joined: int = 0
    """Samples of any state that the join has written."""
    version: int | None = None
    versions_published: int = 0
    vectors_published: dict[str, int] = {}
    watermark_lag_seconds: float | None = None
    answered: dict[str, bool] = {}


def read_out(run: RunState) -> Readout:
    """Ask every process of `run`; one that does not answer leaves its part empty."""
    scrapes = {
        name: scrape(child.metrics_port)
        for name, child in run.children.items()
        if child.metrics_port is not None
    }
    join = scrapes.get("join", Scrape(""))
    trainer = scrapes.get("trainer", Scrape(""))
    reader_port = run.children["reader"].metrics_port if "reader" in run.children else None
    out = Readout(at=time.monotonic())
    out.answered = {name: found.answered for name, found in scrapes.items()}
    for labels, value in join.find("headwater_join_events_total"):
        verdicts = out.events.setdefault(labels.get("stream", ""), {})
        verdicts[labels.get("verdict", "")] = int(value)
    out.learned = _counts(trainer.by("headwater_trainer_samples_total", "state"))
    for found in scrapes.values():
        out.lag_records |= _counts(found.by("headwater_consumer_lag_records", "group"))
        for labels, value in found.find("headwater_consumer_lag_seconds"):
            group = labels.get("group", "")
            out.lag_seconds[group] = max(out.lag_seconds.get(group, 0.0), round(value, 3))
    out.freshness_seconds = page(reader_port, "/freshness") or {} if reader_port else {}
    for metric in TASK_METRICS:
        for window, into in (("all", out.progressive), ("latest", out.progressive_latest)):
            found_by_task = trainer.by(f"headwater_progressive_{metric}", "task", window=window)
            for task, value in found_by_task.items():
                into.setdefault(task, {})[metric] = _number(value)
    out.samples_joined = int(join.total("headwater_join_samples_total") or 0)
    version = trainer.total("headwater_version")
    out.version = int(version) if version else None
    out.versions_published = int(trainer.total("headwater_versions_published_total") or 0)
    out.vectors_published = _counts(trainer.by("headwater_vectors_published_total", "kind"))
    out.watermark_lag_seconds = _number(join.total("headwater_watermark_lag_seconds"))
    return out


def rates(before: Readout, after: Readout) -> dict[str, float]:
    """Samples per second through join and trainer, vectors per second out of it, between two
    readouts; a restart may show as 0."""
    seconds = max(1e-9, after.at - before.at)

    def rate(old: int, new: int) -> float:
        return max(0.0, (new - old) / seconds)

    return {
        "joined": rate(before.samples_joined, after.samples_joined),
        "learned": rate(sum(before.learned.values()), sum(after.learned.values())),
        "published": rate(
            sum(before.vectors_published.values()), sum(after.vectors_published.values())
        ),
    }


def judged(out: Readout) -> int:
    """Events of both streams that the join has given a verdict."""
    return sum(sum(verdicts.values()) for verdicts in out.events.values())


def restarts(run: RunState) -> dict[str, Any]:
    """{"total": n, child: {"count", "reason"}} of the children that were restarted."""
    told: dict[str, Any] = {
        name: {"count": child.restarts, "reason": child.reason}
        for name, child in run.children.items()
        if child.restarts
    }
    return {"total": sum(child.restarts for child in run.children.values()), **told}


def _counts(sums: dict[str, float]) -> dict[str, int]:
    return {name: int(value) for name, value in sums.items()}


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 6)

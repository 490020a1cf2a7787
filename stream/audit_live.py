"""The audit beside a running join: round after round, each as of the newest completed checkpoint.

Topics are read once and then only what has come since. What a balanced round has proven and nothing
can speak of any more (whole pairs, all decided, twice the longest window and the lateness behind
the watermark) is forgotten, so that memory holds the open past and not the whole one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import polars as pl
from prometheus_client import CollectorRegistry, Counter, Gauge

from settings.config import Config
from stream.audit import AuditReport, settled_report
from stream.audit_read import TopicFrames
from stream.audit_rules import PAIR, SOURCE, judge
from topics.lag import committed_offsets
from topics.names import EVENT_TOPICS, join_group


class AuditMetrics:
    """What the newest round found, for /metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._balanced = Gauge(
            "headwater_audit_balanced", "1 if the newest round balanced", registry=registry
        )
        self._differences = Gauge(
            "headwater_audit_differences", "Differences in the newest round", registry=registry
        )
        self._events = Gauge(
            "headwater_audit_events",
            "Events in the newest round by where they ended",
            ["stream", "verdict"],
            registry=registry,
        )
        self._settled = Gauge(
            "headwater_audit_settled_events", "Events proven and forgotten", registry=registry
        )
        self._lag = Gauge(
            "headwater_audit_watermark_lag_seconds",
            "Wall clock minus the watermark that the newest round is as of",
            registry=registry,
        )
        self._last = Gauge(
            "headwater_audit_last_round_timestamp_seconds", "When it ended", registry=registry
        )
        self._rounds = Counter("headwater_audit_rounds", "Rounds", registry=registry)

    def observe(self, report: AuditReport) -> None:
        now = time.time()
        self._balanced.set(report.balanced)
        self._differences.set(report.differences_total)
        for stream, counts in (
            ("impressions", report.impressions),
            ("conversions", report.conversions),
        ):
            for verdict in counts.__struct_fields__:
                if verdict not in ("in_", "by_kind"):
                    self._events.labels(stream, verdict).set(getattr(counts, verdict))
        self._settled.set(report.settled)
        if report.as_of.watermark_ms >= 0:
            self._lag.set(now - report.as_of.watermark_ms / 1000)
        self._last.set(now)
        self._rounds.inc()


class LiveAudit:
    """Rounds over one running join."""

    def __init__(self, config: Config, bootstrap: str, *, settle_seconds: float = 10.0) -> None:
        self._config = config
        self._settle_seconds = settle_seconds
        self._read_committed = committed_offsets(
            config, bootstrap, join_group(config), EVENT_TOPICS
        )
        self._frames = TopicFrames(config, bootstrap)
        self._settled = 0

    @property
    def events_held(self) -> int:
        """Events in memory."""
        return len(self._frames.events)

    def rounds(self, every_seconds: float) -> Iterator[AuditReport]:
        """One report after another, started `every_seconds` apart, for ever. Raises TopicError."""
        while True:
            started = time.monotonic()
            yield self.round()
            time.sleep(max(0.0, started + every_seconds - time.monotonic()))

    def round(self) -> AuditReport:
        """Look at everything since; `settled` counts what earlier rounds have forgotten."""
        report = settled_report(
            self._config,
            self._frames,
            dict(self._read_committed()),
            self._read_committed,
            self._settle_seconds,
        )
        report.settled = self._settled
        if report.balanced:
            as_of = {
                (name, partition): offset
                for name, offsets in report.as_of.offsets.items()
                for partition, offset in offsets.items()
            }
            self._settled += self._forget(judge(self._frames, as_of), report.as_of.watermark_ms)
        return report

    def _forget(self, judged: pl.DataFrame, watermark_ms: int) -> int:
        """Drop whole pairs that are done with; how many events went."""
        config = self._config
        horizon_ms = watermark_ms - 2 * (config.window_ms_max + config.join.lateness)
        is_done = (
            pl.col("is_in")
            & pl.col("verdict").is_not_null()
            & (pl.col("watermark_ms") < horizon_ms)
            & (pl.col("event_ms").fill_null(-1) < horizon_ms)
            # The newest event of each partition bears witness against those from the future.
            & (pl.col("event_ms") < pl.col("event_ms").max().over("stream", "partition"))
        )
        pairs = judged.filter(pl.col("user_id").is_not_null())
        done = (
            pairs.with_columns(is_done=is_done.fill_null(value=False))
            .filter(pl.col("is_done").all().over(PAIR))
            .select(SOURCE)
        )
        frames = self._frames
        frames.events = frames.events.join(done, on=SOURCE, how="anti")
        frames.sides = frames.sides.join(done, on=SOURCE, how="anti")
        frames.attributed = frames.attributed.join(done, on=SOURCE, how="anti")
        frames.sampled = frames.sampled.join(done, on=SOURCE, how="anti")
        frames.appended = frames.appended.join(done, on=SOURCE, how="anti")
        return len(done)

"""The audit: recomputes the join from the raw topics by brute force, and proves, event by event,
that what went in equals what came out.

At the source offsets of a completed checkpoint (the join's group-committed offsets):

    impressions in = sampled + sampled_out + pending + duplicate + late + undecodable
    conversions in = attributed + pending + duplicate + late + orphan + undecodable

No term is found by subtraction. Attribution is recomputed from the events and compared conversion
by conversion; samples are compared with the attributions, label by label; a duplicate needs an
earlier event with its id; one sampled out has its window behind it, no conversion, and an id that
the draw leaves out; undecodable bytes must fail a second decoder or be from the future; late
ones must be behind the watermark written with the verdict, and have had no open impression; pending
ones must be due only after the newest watermark.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
import polars as pl

from settings.config import Config
from stream.audit_checks import Difference, Found, WindowDifferences, check
from stream.audit_read import TopicFrames
from stream.audit_rules import judge
from topics.lag import committed_offsets
from topics.names import CONVERSIONS, EVENT_TOPICS, IMPRESSIONS, join_group
from topics.scan import Partition, end_offsets

_PAUSE_SECONDS = 0.5


class ImpressionCounts(msgspec.Struct, kw_only=True):
    in_: int = msgspec.field(name="in", default=0)
    sampled: int = 0
    sampled_out: int = 0
    """Down-sampled negatives: no sample, by `join.negatives_kept`."""
    pending: int = 0
    duplicate: int = 0
    late: int = 0
    undecodable: int = 0


class ConversionCounts(msgspec.Struct, kw_only=True):
    in_: int = msgspec.field(name="in", default=0)
    attributed: int = 0
    pending: int = 0
    duplicate: int = 0
    late: int = 0
    orphan: int = 0
    undecodable: int = 0


class AllConversionCounts(ConversionCounts, kw_only=True):
    by_kind: dict[str, ConversionCounts] = {}
    """Events whose bytes do not decode have no kind."""


class AsOf(msgspec.Struct, kw_only=True):
    offsets: dict[str, dict[int, int]]
    """Event topic -> partition -> first offset that is not in."""
    watermark_ms: int


class AuditReport(msgspec.Struct, kw_only=True):
    """`balanced` iff both identities hold, nothing differs, and there was something to audit if
    there are events."""

    balanced: bool
    reason: str | None = None
    """Why nothing was audited, where events are there and the join has not committed any."""
    impressions: ImpressionCounts
    conversions: AllConversionCounts
    attributed_by_kind: dict[str, int]
    reprocessed: int = 0
    """Late impressions that `reprocess late` has given their final sample since; they count as late
    nevertheless."""
    differences: list[Difference]
    """The first of each problem."""
    differences_total: int
    first_by_kind: dict[str, dict[int, WindowDifferences]]
    """Kind (or "impressions", or "undecodable" where bytes have no kind) -> start of an hour of
    event time -> what differs there."""
    settled: int = 0
    """Events that earlier rounds of a live audit have proven and that are not looked at again."""
    unreadable: list[str]
    """Output records that are not what their topic carries."""
    as_of: AsOf


def audit(
    config: Config, bootstrap: str, *, bounded: bool = False, settle_seconds: float = 10.0
) -> AuditReport:
    """Audit a running join, or with `bounded` one that has come to the end of its input.

    The transactions of one checkpoint become visible one after another, so what does not balance is
    looked at again, with what has come since, until `settle_seconds` have passed. Costs about
    40 s of one core and 2.5 GB for 1e6 events and their outputs. The topics must be whole: what
    their retention has deleted shows as differences. Raises TopicError.
    """
    read_committed = committed_offsets(config, bootstrap, join_group(config), EVENT_TOPICS)
    as_of = dict(end_offsets(config, bootstrap, EVENT_TOPICS) if bounded else read_committed())
    frames = TopicFrames(config, bootstrap)
    return settled_report(config, frames, as_of, read_committed, settle_seconds)


def settled_report(
    config: Config,
    frames: TopicFrames,
    as_of: dict[Partition, int],
    read_committed: Callable[[], Mapping[Partition, int]],
    settle_seconds: float,
) -> AuditReport:
    """The audit as of the offsets `as_of`, looked at again until it balances or time is up."""
    frames.advance()
    # Outputs up to this watermark are committed, if perhaps not visible yet.
    watermark_ms = frames.watermark_ms()
    deadline = time.monotonic() + settle_seconds
    while True:
        report = _examine(config, frames, as_of, watermark_ms)
        if report.balanced or time.monotonic() > deadline:
            return report
        time.sleep(_PAUSE_SECONDS)
        if report.reason is not None:
            as_of = dict(read_committed())
        frames.advance()


def _examine(
    config: Config, frames: TopicFrames, as_of: dict[Partition, int], watermark_ms: int
) -> AuditReport:
    judged = judge(frames, as_of)
    found, unwritten = check(config, frames, judged, watermark_ms)
    is_blind = len(frames.events) > 0 and not any(as_of.values())
    scope = judged.with_columns(verdict=pl.coalesce(unwritten, "verdict")).filter("is_in")
    impressions = ImpressionCounts()
    _count(impressions, scope.filter(pl.col("stream") == IMPRESSIONS))
    of_conversions = scope.filter(pl.col("stream") == CONVERSIONS)
    conversions = AllConversionCounts(by_kind={kind: ConversionCounts() for kind in config.kinds})
    _count(conversions, of_conversions)
    for kind, counts in conversions.by_kind.items():
        _count(counts, of_conversions.filter(pl.col("kind") == kind))
    offsets: dict[str, dict[int, int]] = {name: {} for name in EVENT_TOPICS}
    for (name, partition), offset in sorted(as_of.items()):
        offsets[name][partition] = offset
    return AuditReport(
        balanced=not is_blind and _is_balanced(found, frames, (impressions, conversions)),
        reason="the join has not completed a checkpoint that took an event" if is_blind else None,
        impressions=impressions,
        conversions=conversions,
        attributed_by_kind={k: counts.attributed for k, counts in conversions.by_kind.items()},
        reprocessed=frames.appended.filter(pl.col("state") == "final").height,
        differences=found.shown,
        differences_total=found.total,
        first_by_kind=found.by_kind_and_window(judged),
        unreadable=frames.unreadable[:20],
        as_of=AsOf(offsets=offsets, watermark_ms=watermark_ms),
    )


def _count(counts: ImpressionCounts | ConversionCounts, rows: pl.DataFrame) -> None:
    counts.in_ = len(rows)
    for verdict, count in rows.group_by("verdict").len().iter_rows():
        if verdict is not None:
            setattr(counts, verdict, count)


def _is_balanced(
    found: Found,
    frames: TopicFrames,
    streams: tuple[ImpressionCounts, ConversionCounts],
) -> bool:
    for counts in streams:
        terms = [
            v for k, v in msgspec.structs.asdict(counts).items() if k not in ("in_", "by_kind")
        ]
        if counts.in_ != sum(terms):
            return False
    return found.total == 0 and not frames.unreadable

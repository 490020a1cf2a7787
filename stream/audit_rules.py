"""The join's rules a second time, as relations over whole frames: nothing here is shared with the
operator, so that a mistake would have to be made twice, in two ways, to go unseen.

A *judged* frame is the events with `row` (an index), `verdict` (null = none yet) and the watermark
and wall clock at which the verdict was written. `is_in` marks events at or before the audit's
source offsets; the others are context.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import polars as pl

from settings.config import Config
from stream.audit_read import TopicFrames
from topics.names import CONVERSIONS, DUPLICATES, IMPRESSIONS, LATE, ORPHANS, UNDECODABLE
from topics.scan import Partition

SOURCE = ["stream", "partition", "offset"]
PAIR = ["user_id", "item_id"]
_VERDICTS = {
    LATE: "late",
    ORPHANS: "orphan",
    DUPLICATES: "duplicate",
    UNDECODABLE: "undecodable",
}


def endings(frames: TopicFrames) -> pl.DataFrame:
    """Every record that ends an event: its source, verdict, watermark and wall clock."""
    columns = [*SOURCE, "verdict", "watermark_ms", "joined_ms", "reason"]
    none = pl.lit(None, pl.String)
    sides = frames.sides.with_columns(verdict=pl.col("topic").replace_strict(_VERDICTS))
    attributed = frames.attributed.with_columns(verdict=pl.lit("attributed"), reason=none)
    finals = frames.sampled.filter(pl.col("state") == "final").with_columns(
        verdict=pl.lit("sampled"), reason=none
    )
    return pl.concat([frame.select(columns) for frame in (sides, attributed, finals)])


def judge(frames: TopicFrames, as_of: Mapping[Partition, int]) -> pl.DataFrame:
    """The judged frame; of several endings the first counts (the others are differences)."""
    limits = pl.DataFrame(
        [(stream, partition, limit) for (stream, partition), limit in as_of.items()],
        schema={"stream": pl.String, "partition": pl.Int64, "limit": pl.Int64},
        orient="row",
    )
    return (
        frames.events.sort(SOURCE)
        .with_row_index("row")
        .join(limits, on=["stream", "partition"], how="left")
        .with_columns(is_in=pl.col("offset") < pl.col("limit").fill_null(0))
        .join(
            endings(frames).unique(SOURCE, keep="first", maintain_order=True), on=SOURCE, how="left"
        )
        .sort("row")
    )


def accepted_impressions(frames: TopicFrames, judged: pl.DataFrame) -> pl.DataFrame:
    """Impressions that conversions can belong to: those sampled, those still open, and of the
    context those that an output speaks of. Columns: pair, impression_id, impression_ms, and
    impression_row, one row per (pair, id, time)."""
    mentioned = pl.concat(
        [
            frames.sampled.select(SOURCE).join(judged, on=SOURCE).select("row"),
            _owners(frames, judged).select("row"),
        ]
    ).unique()
    is_open = pl.col("verdict").is_null() & (
        pl.col("is_in") | pl.col("row").is_in(mentioned["row"].implode())
    )
    return (
        judged.filter(
            pl.col("stream") == IMPRESSIONS,
            pl.col("invalid").is_null(),
            is_open | (pl.col("verdict") == "sampled"),
        )
        .select(
            *PAIR,
            impression_id="id",
            impression_ms="event_ms",
            impression_row="row",
            impression_produced_ms="produced_ms",
        )
        .unique([*PAIR, "impression_id", "impression_ms"], keep="first", maintain_order=True)
    )


def _owners(frames: TopicFrames, judged: pl.DataFrame) -> pl.DataFrame:
    conversions = judged.select([*SOURCE, *PAIR])
    owners = frames.attributed.select([*SOURCE, "impression_id"]).join(conversions, on=SOURCE)
    impressions = judged.filter(pl.col("stream") == IMPRESSIONS)
    return owners.select([*PAIR, "impression_id"]).join(
        impressions, left_on=[*PAIR, "impression_id"], right_on=[*PAIR, "id"]
    )


def with_expected_owner(
    config: Config, conversions: pl.DataFrame, impressions: pl.DataFrame
) -> pl.DataFrame:
    """`conversions` with the impression that each belongs to by the contract (else nulls).

    One that names an impression: that one, of its pair, at most window(kind) before it. One that
    names none: the greatest (event_ms, impression_id) of its pair at or before it, if that lies
    within the window.
    """
    windows = {kind: spec.window for kind, spec in config.kinds.items()}
    asking = conversions.with_columns(
        window_ms=pl.col("kind").replace_strict(windows, return_dtype=pl.Int64)
    )
    named = (
        asking.filter(pl.col("named").is_not_null())
        .join(impressions, left_on=[*PAIR, "named"], right_on=[*PAIR, "impression_id"])
        .filter(pl.col("event_ms") >= pl.col("impression_ms"))
        .with_columns(impression_id="named")
    )
    newest = (
        impressions.sort("impression_ms", "impression_id")
        .unique([*PAIR, "impression_ms"], keep="last", maintain_order=True)
        .sort("impression_ms")
    )
    touched = (
        asking.filter(pl.col("named").is_null())
        .sort("event_ms")
        .join_asof(
            newest,
            left_on="event_ms",
            right_on="impression_ms",
            by=PAIR,
            strategy="backward",
            check_sortedness=False,
        )
        .filter(pl.col("impression_row").is_not_null())
    )
    columns = ["row", "impression_id", "impression_ms", "impression_row"]
    owners = (
        pl.concat(
            [
                named.select([*columns, "event_ms", "window_ms"]),
                touched.select([*columns, "event_ms", "window_ms"]),
            ]
        )
        .filter(pl.col("event_ms") - pl.col("impression_ms") <= pl.col("window_ms"))
        .sort("impression_ms")
        .unique("row", keep="last", maintain_order=True)
        .select(columns)
    )
    return conversions.join(owners, on="row", how="left")


def attributed_labels(
    config: Config, frames: TopicFrames, judged: pl.DataFrame, impressions: pl.DataFrame
) -> pl.DataFrame:
    """What each impression's `final` sample must say by the attributions topic: one row per
    impression_row that has any, with `positive`, `delays`, `values`, `counts` as in
    `audit_read.SAMPLED`, `newest_ms`, and `newest_produced_ms` (a list: equal times have no
    order)."""
    conversions = judged.filter(pl.col("stream") == CONVERSIONS)
    owned = (
        frames.attributed.unique(SOURCE, keep="first", maintain_order=True)
        .select([*SOURCE, "impression_id", "kind"])
        .join(
            conversions.select([*SOURCE, *PAIR, "id", "event_ms", "produced_ms", "value"]),
            on=SOURCE,
        )
        .join(impressions, on=[*PAIR, "impression_id"])
        .filter(pl.col("event_ms") >= pl.col("impression_ms"))
        .sort("impression_ms")
        .unique(SOURCE, keep="last", maintain_order=True)
    )
    policies = {kind: spec.value for kind, spec in config.kinds.items()}
    firsts = (
        owned.sort("event_ms", "id")
        .group_by("impression_row", "kind", maintain_order=True)
        .agg(
            delay=(pl.col("event_ms") - pl.col("impression_ms")).first(),
            count=pl.len(),
            first=pl.col("value").first(),
            brought=pl.col("value").drop_nulls(),
        )
        .with_columns(policy=pl.col("kind").replace_strict(policies, return_dtype=pl.String))
        .with_columns(value=_values())
        .with_columns(
            delay=pl.format("{}:{}", "kind", "delay"),
            amount=pl.when(pl.col("value").is_not_null()).then(pl.format("{}:{}", "kind", "value")),
            count=pl.format("{}:{}", "kind", "count"),
        )
        .group_by("impression_row")
        .agg(
            positive=pl.col("kind").sort().str.join(","),
            delays=pl.col("delay").sort().str.join(","),
            values=pl.col("amount").drop_nulls().sort().str.join(","),
            counts=pl.col("count").sort().str.join(","),
        )
    )
    newest = owned.group_by("impression_row").agg(
        newest_ms=pl.col("event_ms").max(),
        newest_produced_ms=pl.col("produced_ms").filter(
            pl.col("event_ms") == pl.col("event_ms").max()
        ),
    )
    return firsts.join(newest, on="impression_row")


def _values() -> pl.Expr:
    """The value of one impression and kind by its policy, as text: columns `policy`, `first` and
    `brought`, the list of those that are there in order of (event_ms, id)."""
    return (
        pl.when(pl.col("policy") == "first")
        .then(pl.col("first"))
        .when(pl.col("policy") == "last")
        .then(pl.col("brought").list.last())
        .otherwise(
            pl.when(pl.col("policy").is_in(["sum", "max"]) & (pl.col("brought").list.len() > 0))
            .then(pl.struct("policy", "brought"))
            .map_elements(_folded, return_dtype=pl.String, skip_nulls=True)
        )
    )


def _folded(row: dict[str, Any]) -> str:
    """In the order of the list, as binary64 adds: the operator's own bits."""
    amounts = [float(text) for text in row["brought"]]
    if row["policy"] == "max":
        return repr(max(amounts))
    total = amounts[0]
    for amount in amounts[1:]:
        total += amount
    largest = sys.float_info.max
    return repr(max(-largest, min(largest, total)))


def running_event_ms(judged: pl.DataFrame) -> pl.Series:
    """For each row of `judged` (in its order): the greatest event time that its partition had
    accepted before it; null before the first."""
    is_accepted = pl.col("invalid").is_null() & (
        pl.col("verdict").is_null() | (pl.col("verdict") != "undecodable")
    )
    return judged.select(
        pl.when(is_accepted)
        .then(pl.col("event_ms"))
        .cum_max()
        .forward_fill()
        .over("stream", "partition")
        .alias("running_ms")
    ).to_series()

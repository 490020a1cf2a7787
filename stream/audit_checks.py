"""What the audit compares. Each check yields differences; none is a matter of counting."""

from __future__ import annotations

import msgspec
import polars as pl

from settings.config import Config
from stream.audit_read import TopicFrames
from stream.audit_rules import (
    PAIR,
    SOURCE,
    accepted_impressions,
    attributed_labels,
    endings,
    running_event_ms,
    with_expected_owner,
)
from topics.names import CONVERSIONS, IMPRESSIONS

_SHOWN_PER_CHECK = 20
_WINDOW_MS = 3_600_000


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One event for which the join's output is not what the rules say."""

    problem: str
    stream: str
    partition: int
    offset: int
    id: str | None


class WindowDifferences(msgspec.Struct, frozen=True, kw_only=True):
    """What differs in one window of event time."""

    total: int
    first_ids: list[str | None]


class Found:
    """Differences, of which the first of each check are kept by name and all are counted."""

    def __init__(self) -> None:
        self.shown: list[Difference] = []
        self.total = 0
        self._rows: list[pl.DataFrame] = []

    def add(self, rows: pl.DataFrame, problem: str | pl.Expr) -> None:
        """`rows` differ; `problem` says how, in words or as an expression over them."""
        self.total += len(rows)
        self._rows.append(rows.select(*SOURCE, "id"))
        text = pl.lit(problem) if isinstance(problem, str) else problem
        named = rows.head(_SHOWN_PER_CHECK).select(*SOURCE, "id", problem=text)
        self.shown += [Difference(**row) for row in named.iter_rows(named=True)]

    def by_kind_and_window(self, judged: pl.DataFrame) -> dict[str, dict[int, WindowDifferences]]:
        """Kind -> start of the hour of event time (-1 = unknown) -> how many differ, first ids."""
        if not self.total:
            return {}
        kind = pl.when(pl.col("event_ms").is_null()).then(pl.lit("undecodable"))
        grouped = (
            pl.concat(self._rows)
            .join(judged.select(*SOURCE, "kind", "event_ms"), on=SOURCE, how="left")
            .with_columns(
                kind=kind.otherwise(pl.col("kind").fill_null("impressions")),
                window=(pl.col("event_ms") // _WINDOW_MS * _WINDOW_MS).fill_null(-1),
            )
            .sort("event_ms", *SOURCE)
            .group_by("kind", "window", maintain_order=True)
            .agg(total=pl.len(), first_ids=pl.col("id").unique(maintain_order=True).head(5))
            .sort("kind", "window")
        )
        found: dict[str, dict[int, WindowDifferences]] = {}
        for row in grouped.iter_rows(named=True):
            found.setdefault(row["kind"], {})[row["window"]] = WindowDifferences(
                total=row["total"], first_ids=row["first_ids"]
            )
        return found


def check(
    config: Config, frames: TopicFrames, judged: pl.DataFrame, watermark_ms: int
) -> tuple[Found, pl.Series]:
    """All differences, and for each row of `judged` without a record of its own what it is proven
    to be: pending, sampled_out, or null."""
    found = Found()
    impressions = accepted_impressions(frames, judged)
    scope = judged.filter("is_in")
    conversions = with_expected_owner(
        config,
        scope.filter(
            pl.col("stream") == CONVERSIONS,
            pl.col("invalid").is_null(),
            pl.col("verdict").is_null() | ~pl.col("verdict").is_in(["duplicate", "undecodable"]),
        ),
        impressions,
    )
    _check_endings(found, frames, judged)
    _check_undecodable(found, config, judged)
    _check_side_topics(found, frames, judged)
    _check_duplicates(found, config, judged)
    _check_conversions(found, config, frames, conversions)
    labels = attributed_labels(config, frames, judged, impressions)
    samples = _sampled_events(frames, judged, labels)
    _check_content(found, samples)
    _check_finals(found, config, samples.filter(pl.col("state") == "final"))
    _check_revisions(found, config, samples)
    _check_appended(found, frames, judged)
    return found, _prove_unwritten(found, config, judged, (conversions, labels), watermark_ms)


def _check_endings(found: Found, frames: TopicFrames, judged: pl.DataFrame) -> None:
    ends = endings(frames)
    foreign = ends.join(judged, on=SOURCE, how="anti").with_columns(id=pl.lit(None, pl.String))
    found.add(foreign, pl.format("{}, but there is no such event", "verdict"))
    several = (
        ends.group_by(SOURCE, maintain_order=True)
        .agg(verdicts=pl.col("verdict").str.join(" and "), count=pl.len())
        .filter(pl.col("count") > 1)
        .join(judged.select(*SOURCE, "id"), on=SOURCE)
    )
    found.add(several, pl.format("ended more than once: {}", "verdicts"))


def _check_undecodable(found: Found, config: Config, judged: pl.DataFrame) -> None:
    bound_ms = config.events.future_bound
    known = judged.with_columns(running_ms=running_event_ms(judged)).filter("is_in")
    found.add(
        known.filter(
            pl.col("invalid").is_not_null(),
            pl.col("verdict").is_not_null() & (pl.col("verdict") != "undecodable"),
        ),
        pl.format("{}, expected undecodable: {}", "verdict", "invalid"),
    )
    decodable = known.filter(pl.col("invalid").is_null(), pl.col("verdict").is_not_null())
    is_ahead = (pl.col("event_ms") - bound_ms > pl.col("running_ms")).fill_null(value=False)
    is_beyond_now = pl.col("event_ms") - bound_ms > pl.col("joined_ms")
    refused = pl.col("verdict") == "undecodable"
    found.add(
        decodable.filter(refused, ~is_ahead, ~is_beyond_now, ~_was_no_kind()),
        "undecodable, but it decodes and is not from the future",
    )
    found.add(
        decodable.filter(~refused, is_beyond_now),
        pl.format("{}, expected undecodable: it is ahead of the wall clock", "verdict"),
    )


def _was_no_kind() -> pl.Expr:
    """Refused for its kind, which then was none: a config may add kinds. The reason lists those
    that were."""
    listed = pl.col("reason").str.extract(r"^kind: expected one of (.*), got ", 1)
    return (~listed.str.split(", ").list.contains(pl.col("kind"))).fill_null(value=False)


def _check_side_topics(found: Found, frames: TopicFrames, judged: pl.DataFrame) -> None:
    sides = frames.sides.join(judged, on=SOURCE, suffix="_event")
    found.add(
        sides.filter(pl.col("digest").ne_missing(pl.col("digest_event"))),
        pl.format("its bytes in {} are not the original ones", "topic"),
    )
    found.add(
        judged.filter(
            "is_in", pl.col("verdict") == "late", pl.col("event_ms") > pl.col("watermark_ms")
        ),
        pl.format("late, but the watermark was {}, before it", "watermark_ms"),
    )


def _check_duplicates(found: Found, config: Config, judged: pl.DataFrame) -> None:
    retained_ms = config.window_ms_max + config.join.lateness
    identity = ["stream", *PAIR, "id"]
    events = judged.filter(
        pl.col("invalid").is_null(),
        pl.col("verdict").is_null() | (pl.col("verdict") != "undecodable"),
        pl.col("is_in") | pl.col("verdict").is_not_null(),
    )
    is_duplicate = (pl.col("verdict") == "duplicate").fill_null(value=False)
    firsts = events.filter(~is_duplicate).select(
        *identity,
        first_row="row",
        first_partition="partition",
        first_offset="offset",
        first_ms="event_ms",
    )
    repeats = (
        events.filter("is_in")
        .join(firsts, on=identity)
        .filter(
            pl.col("first_row") != pl.col("row"),
            (pl.col("first_partition") != pl.col("partition"))
            | (pl.col("first_offset") < pl.col("offset")),
        )
    )
    proven = repeats.filter(pl.col("watermark_ms") <= pl.col("first_ms") + retained_ms)
    found.add(
        events.filter("is_in", is_duplicate).join(proven, on="row", how="anti"),
        "duplicate, but no earlier event of its pair has its id",
    )
    # Arrival watermarks are known of late ones only; one on time was ahead of its own.
    arrival_ms = pl.when(pl.col("verdict") == "late").then("watermark_ms").otherwise("event_ms")
    found.add(
        repeats.filter(
            ~is_duplicate,
            pl.col("first_partition") == pl.col("partition"),
            arrival_ms <= pl.col("first_ms") + retained_ms,
        ).unique("row", maintain_order=True),
        pl.format(
            "{}, expected duplicate of offset {}",
            pl.col("verdict").fill_null("nothing"),
            "first_offset",
        ),
    )


def _check_conversions(
    found: Found, config: Config, frames: TopicFrames, conversions: pl.DataFrame
) -> None:
    expected = pl.format("impression {}", "impression_id").fill_null("no impression")
    said = frames.attributed.unique(SOURCE, keep="first", maintain_order=True).select(
        *SOURCE, said_id="impression_id", said_conversion="id", said_kind="kind"
    )
    attributed = conversions.filter(pl.col("verdict") == "attributed").join(said, on=SOURCE)
    found.add(
        attributed.filter(pl.col("said_id").ne_missing(pl.col("impression_id"))),
        pl.format("attributed to impression {}, expected {}", "said_id", expected),
    )
    found.add(
        attributed.filter(
            (pl.col("said_conversion") != pl.col("id")) | (pl.col("said_kind") != pl.col("kind"))
        ),
        pl.format("its attribution says {} {}", "said_kind", "said_conversion"),
    )
    orphans = conversions.filter(pl.col("verdict") == "orphan")
    found.add(
        orphans.filter(pl.col("impression_id").is_not_null()),
        pl.format("orphan, expected {}", expected),
    )
    found.add(
        orphans.filter(pl.col("event_ms") > pl.col("watermark_ms")),
        "orphan before the watermark reached it",
    )
    closes_ms = pl.col("impression_ms") + config.window_ms_max
    found.add(
        conversions.filter(pl.col("verdict") == "late", closes_ms > pl.col("watermark_ms")),
        pl.format("late, expected {}, which was open", expected),
    )


def _sampled_events(
    frames: TopicFrames, judged: pl.DataFrame, labels: pl.DataFrame
) -> pl.DataFrame:
    """Each sample beside its impression (`_event`) and what its attributions say (`_expected`)."""
    return (
        frames.sampled.join(judged.filter("is_in"), on=SOURCE, suffix="_event")
        .join(labels, left_on="row", right_on="impression_row", how="left", suffix="_expected")
        .with_columns(said_id="id", id="id_event")
    )


def _check_content(found: Found, samples: pl.DataFrame) -> None:
    found.add(
        samples.filter(
            (pl.col("said_id") != pl.col("id"))
            | (pl.col("impression_ms") != pl.col("event_ms_event"))
            | (pl.col("content") != pl.col("content_event"))
        ),
        pl.format("its {} sample does not carry it untouched", "state"),
    )
    found.add(
        samples.filter(
            (pl.col("keep_rate") != pl.col("keep_rate_event"))
            | (pl.col("kept") != pl.col("kept_event"))
        ),
        pl.format("{} sample with keep_rate {}, kept {}", "state", "keep_rate", "kept"),
    )
    found.add(
        samples.filter(~pl.col("kept"), pl.col("kinds") != pl.col("positive")),
        pl.format("{} sample with negatives that are sampled out: {}", "state", "kinds"),
    )
    found.add(samples.filter(pl.col("kinds") == ""), "a sample without labels")


def _check_finals(found: Found, config: Config, finals: pl.DataFrame) -> None:
    every_kind = ",".join(sorted(config.kinds))
    for name in ("positive", "delays", "values", "counts"):
        expected = pl.col(f"{name}_expected").fill_null("")
        found.add(
            finals.filter(pl.col(name) != expected),
            pl.format(
                "final sample has {} '{}', expected '{}' by its attributions",
                pl.lit(name),
                name,
                expected,
            ),
        )
    found.add(
        finals.filter("kept", pl.col("kinds") != every_kind),
        pl.format("final sample has labels for {}, expected " + every_kind, "kinds"),
    )
    found.add(
        finals.filter(pl.col("elapsed_ms") != config.window_ms_max),
        pl.format("final sample has elapsed_ms {}", "elapsed_ms"),
    )
    newest_ms = pl.max_horizontal("event_ms_event", "newest_ms")
    is_own = pl.col("produced_ms") == pl.col("produced_ms_event")
    is_theirs = pl.col("produced_ms").is_in(pl.col("newest_produced_ms")).fill_null(value=False)
    can_be_own = newest_ms == pl.col("event_ms_event")
    found.add(
        finals.filter((pl.col("event_ms") != newest_ms) | ~((is_own & can_be_own) | is_theirs)),
        "final sample's event or produce time is not that of the newest event in it",
    )


def _check_revisions(found: Found, config: Config, samples: pl.DataFrame) -> None:
    """Policy `wait`: one final. Policy `correct`: an early, then each kind once, then a final;
    where negatives are sampled out, no early that would be empty."""
    is_early, is_final = pl.col("state") == "early", pl.col("state") == "final"
    told = pl.col("positive").filter(~is_final, pl.col("positive") != "")
    by_row = samples.sort("revision").group_by(SOURCE, maintain_order=True).agg(
        id=pl.col("id").first(),
        count=pl.len(),
        revisions=pl.col("revision").n_unique(),
        newest=pl.col("revision").max(),
        early=is_early.sum(),
        finals=is_final.sum(),
        ends_final=is_final.last(),
        starts_early=is_early.first(),
        told=told.str.join(",").str.split(",").list.drop_nulls().list.sort().list.join(","),
        final=pl.col("positive").filter(is_final).first(),
        odd=((pl.col("state") == "correction") & (pl.col("kinds") != pl.col("positive"))).sum(),
        kept=pl.col("kept").first(),
        corrected=pl.col("positive").filter(pl.col("state") == "correction").sort().str.join(","),
        delayed=pl.col("delayed").filter(is_final).first(),
        early_elapsed=(is_early & (pl.col("elapsed_ms") != config.join.elapsed)).sum(),
    )  # fmt: skip
    found.add(
        by_row.filter(
            (pl.col("newest") + 1 != pl.col("count")) | (pl.col("revisions") != pl.col("count"))
        ),
        pl.format("{} samples whose revisions are not 0, 1, 2, ...", "count"),
    )
    if config.join.policy == "wait":
        found.add(by_row.filter(pl.col("count") != pl.col("finals")), "not only a final sample")
        return
    found.add(
        by_row.filter(
            (pl.col("early") > 1)
            | ((pl.col("early") == 1) != pl.col("starts_early"))
            | (pl.col("kept") & (pl.col("early") == 0))
        ),
        pl.format("{} early samples, expected one, at revision 0", "early"),
    )
    found.add(
        by_row.filter((pl.col("odd") > 0) | (pl.col("early_elapsed") > 0)),
        "an early or correction sample of the wrong form",
    )
    closed = by_row.filter(pl.col("finals") > 0)
    found.add(closed.filter(~pl.col("ends_final")), "samples after the final one")
    found.add(
        closed.filter(pl.col("corrected") != pl.col("delayed")),
        pl.format("corrections said '{}', the final calls '{}' delayed", "corrected", "delayed"),
    )
    found.add(
        closed.filter(pl.col("told") != pl.col("final")),
        pl.format("early and corrections said '{}', the final '{}'", "told", "final"),
    )


def _check_appended(found: Found, frames: TopicFrames, judged: pl.DataFrame) -> None:
    """What `reprocess late` appended: an impression's own content; its only final if it was late,
    and corrections of kinds not told before if it was sampled."""
    appended = frames.appended.join(judged, on=SOURCE, suffix="_event").with_columns(
        said_id="id", id="id_event"
    )
    found.add(
        appended.filter(
            (pl.col("said_id") != pl.col("id")) | (pl.col("content") != pl.col("content_event"))
        ),
        pl.format("its appended {} sample does not carry it untouched", "state"),
    )
    is_final = pl.col("state") == "final"
    finals = appended.filter(is_final)
    found.add(
        finals.filter(pl.col("verdict").ne_missing("late") | pl.col("row").is_duplicated()),
        pl.format("final sample appended, though it is {}", pl.col("verdict").fill_null("pending")),
    )
    told = frames.sampled.select(*SOURCE, "positive").with_columns(
        pl.col("positive").str.split(",")
    ).explode("positive").unique()  # fmt: skip
    corrections = appended.filter(pl.col("state") == "correction", pl.col("verdict") == "sampled")
    found.add(
        corrections.filter(pl.struct(*SOURCE, "positive").is_duplicated()),
        "one kind corrected twice",
    )
    found.add(
        corrections.join(told, on=[*SOURCE, "positive"], how="semi"),
        pl.format("correction of {} appended, which was told before", "positive"),
    )


def _prove_unwritten(
    found: Found,
    config: Config,
    judged: pl.DataFrame,
    proofs: tuple[pl.DataFrame, pl.DataFrame],
    watermark_ms: int,
) -> pl.Series:
    conversions, labels = proofs
    open_until_ms = (
        pl.when(pl.col("stream") == IMPRESSIONS)
        .then(pl.col("event_ms") + config.window_ms_max)
        .otherwise(pl.col("event_ms"))
    )
    columns = ["row", *SOURCE, "id", "event_ms", "is_in", "verdict", "invalid", "kept"]
    positive = labels.select(row="impression_row", has_label=pl.lit(True))
    owners = conversions.select("row", "impression_id", "named")
    rows = judged.select(columns).join(owners, on="row", how="left")
    rows = rows.join(positive, on="row", how="left")
    is_unjudged = pl.col("is_in") & pl.col("verdict").is_null()
    found.add(
        rows.filter(is_unjudged, pl.col("invalid").is_not_null()),
        pl.format("lost, expected undecodable: {}", "invalid"),
    )
    is_due = open_until_ms <= watermark_ms
    is_owned = pl.col("named").is_not_null() & pl.col("impression_id").is_not_null()
    waits = is_unjudged & pl.col("invalid").is_null()
    is_out = (
        (pl.col("stream") == IMPRESSIONS)
        & ~pl.col("kept").fill_null(value=True)
        & pl.col("has_label").is_null()
    )
    found.add(
        rows.filter(waits, is_due, ~is_out),
        pl.format("lost: due at {}, the watermark is {}", open_until_ms, pl.lit(watermark_ms)),
    )
    found.add(
        rows.filter(waits, ~is_due, is_owned),
        pl.format("lost, expected attribution to impression {}", "impression_id"),
    )
    proven = (
        pl.when(waits & ~is_due & ~is_owned)
        .then(pl.lit("pending"))
        .when(waits & is_due & is_out)
        .then(pl.lit("sampled_out"))
    )
    return rows.sort("row").select(proven.alias("unwritten")).to_series()

"""The real Flink job over a real broker against the rules in plain Python (tests/join_oracle)."""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from settings.config import Config
from tests.join_oracle import Verdicts, judge, owner_of
from tests.join_run import Bytes, Coordinates, Row, join_bounded, produce
from tests.join_samples import Rules, expect_samples, is_sampled_out
from tests.join_stories import LONGEST_MS, START_MS, WINDOWS_MS, Event, bad_events, encoded, stories
from tests.knobs import PROVE

pytestmark = [pytest.mark.kafka, pytest.mark.flink, pytest.mark.slow]

_LONG_SEEDS = ",".join(map(str, range(1, 9)))
SEEDS = list(
    map(int, os.environ.get("HEADWATER_JOIN_SEEDS", _LONG_SEEDS if PROVE else "1").split(","))
)
PAIRS = int(os.environ.get("HEADWATER_JOIN_PAIRS", "40000" if PROVE else "3000"))
"""Of one seed: some 3.3 events each, so that the long count is a million per test."""
VERDICT_OF_TOPIC = {
    "attributions": "attributed",
    "late": "late",
    "orphans": "orphan",
    "duplicates": "duplicate",
    "undecodable": "undecodable",
}


def _config(prefix: str, rules: Rules, partitions: int = 2, **join: Any) -> Config:
    return Config.model_validate(
        {
            "kafka": {"topic_prefix": prefix, "partitions": partitions},
            "kinds": {
                kind: {"window": f"{ms}ms", "value": rules.values[kind]}
                for kind, ms in rules.windows_ms.items()
            },
            "join": {"policy": rules.policy, "elapsed": f"{rules.elapsed_ms}ms", **join},
        }
    )


def _terminals(rows: list[Row]) -> dict[Coordinates, Row]:
    """The one record in which each event ended; fails on a second one."""
    found: dict[Coordinates, Row] = {}
    for row in rows:
        if row.topic != "samples" or row.json["state"] == "final":
            assert row.about not in found, (row.about, row.topic, found[row.about].topic)
            found[row.about] = row
    return found


def _verdict(row: Row) -> str:
    return VERDICT_OF_TOPIC.get(row.topic, "sampled")


def _samples(
    rows: list[Row], placed: dict[Coordinates, tuple[str, int]]
) -> dict[int, list[dict[str, Any]]]:
    """Position of the impression -> its samples by revision, which count from 0."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row.topic == "samples":
            found[placed[row.about][1]].append(row.json)
    for samples in found.values():
        samples.sort(key=lambda sample: int(sample["revision"]))
        assert [sample["revision"] for sample in samples] == list(range(len(samples)))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_wait_gives_every_event_its_verdict_in_any_order(
    kafka: str, prefix: str, tmp_path: Path, seed: int
) -> None:
    random_ = random.Random(seed)
    impressions, conversions = stories(random_, PAIRS)
    bad = bad_events(impressions[0], conversions[0])
    events: dict[str, list[Bytes]] = {
        "impressions": [encoded(random_, event) for event in impressions],
        "conversions": [encoded(random_, event) for event in conversions],
    }
    for stream, records in bad.items():
        events[stream] += [(None, value) for value, _ in records]
    rules = Rules(WINDOWS_MS, {"click": "sum", "buy": "last"}, "wait", keep_rate=0.6)
    config = _config(
        prefix, rules, lateness="1d", negatives_kept=0.1, negatives_kept_by_domain={"feed": 0.6}
    )
    placed = produce(config, kafka, events)
    rows = join_bounded(config, kafka, tmp_path)

    expected = judge(impressions, conversions, WINDOWS_MS)
    verdicts = {"impressions": expected.impressions, "conversions": expected.conversions}
    found = _terminals(rows)
    lacking = {placed[about] for about in set(placed) - set(found)}
    assert lacking == _sampled_out(impressions, expected, rules)
    for about, row in found.items():
        stream, position = placed[about]
        if position >= len(verdicts[stream]):
            value, reason = bad[stream][position - len(verdicts[stream])]
            assert (row.topic, row.value, row.key) == ("undecodable", value, None)
            assert row.headers["hw_reason"].startswith(reason), (row.headers["hw_reason"], reason)
            continue
        assert _verdict(row) == verdicts[stream][position], (about, row.headers)
        if row.topic in ("late", "orphans", "duplicates"):
            assert (row.key, row.value) == events[stream][position]
            assert row.headers["hw_reason"]
    _expect_attributions(found, placed, expected, impressions, conversions)
    for position, samples in _samples(rows, placed).items():
        expect_samples(samples, impressions[position], expected.labels[position], rules)


def _sampled_out(
    impressions: list[Event], expected: Verdicts, rules: Rules
) -> set[tuple[str, int]]:
    return {
        ("impressions", position)
        for position, labels in expected.labels.items()
        if is_sampled_out(impressions[position], labels, rules)
    }


def _expect_attributions(
    found: dict[Coordinates, Row],
    placed: dict[Coordinates, tuple[str, int]],
    expected: Verdicts,
    impressions: list[Event],
    conversions: list[Event],
) -> None:
    for about, row in found.items():
        if row.topic == "attributions":
            conversion = conversions[placed[about][1]]
            owner = impressions[expected.owner[placed[about][1]]]
            assert row.key == conversion["conversion_id"].encode()
            assert row.json == {
                "conversion_id": conversion["conversion_id"],
                "impression_id": owner["impression_id"],
                "kind": conversion["kind"],
            }


@pytest.mark.parametrize("seed", SEEDS)
def test_correct_says_what_was_known_when(
    kafka: str, prefix: str, tmp_path: Path, seed: int
) -> None:
    random_ = random.Random(seed + 1000)
    impressions, conversions = stories(random_, PAIRS)
    events: dict[str, list[Bytes]] = {
        "impressions": [encoded(random_, event) for event in impressions],
        "conversions": [encoded(random_, event) for event in conversions],
    }
    rules = Rules(WINDOWS_MS, {"click": "max", "buy": "first"}, "correct", 30_000, keep_rate=0.5)
    config = _config(prefix, rules, lateness="1d", negatives_kept=0.5, state_backend="rocksdb")
    placed = produce(config, kafka, events)
    rows = join_bounded(config, kafka, tmp_path)

    expected = judge(impressions, conversions, WINDOWS_MS)
    _expect_attributions(_terminals(rows), placed, expected, impressions, conversions)
    samples = _samples(rows, placed)
    accepted = {("impressions", i) for i, v in enumerate(expected.impressions) if v == "sampled"}
    found = {("impressions", position) for position in samples}
    assert found == accepted - _sampled_out(impressions, expected, rules)
    for position, told in samples.items():
        expect_samples(told, impressions[position], expected.labels[position], rules)


@pytest.mark.parametrize("seed", SEEDS)
def test_late_events_end_apart_and_the_rest_is_joined(
    kafka: str, prefix: str, tmp_path: Path, seed: int
) -> None:
    """In arrival order with events far behind at the end: what is late depends on the watermark's
    steps, so the verdicts are taken as given, and everything else must follow from them."""
    random_ = random.Random(seed + 2000)
    impressions, conversions = stories(random_, PAIRS)
    for all_events in (impressions, conversions):
        straggling = random_.sample(range(len(all_events)), len(all_events) // 10)
        order = {id(all_events[i]): len(straggling) for i in straggling}
        all_events.sort(key=lambda event: (order.get(id(event), 0), event["event_ms"]))
    # Far ahead in both streams, so that the watermark passes the stragglers: more events than the
    # source reads without one, and of impressions more bytes than one fetch of a partition brings,
    # so that theirs are read behind all conversions.
    bulk = {"text": "x" * 4_000}
    for step in range(600):
        own = {"user_id": "ahead", "item_id": str(step), "event_ms": START_MS + step * 33_000}
        impressions.insert(
            len(impressions) * 9 // 10,
            {"impression_id": f"a{step}", **own, "domain": "d", "features": bulk},
        )
        conversions.insert(
            len(conversions) * 9 // 10,
            {"conversion_id": f"a{step}", "impression_id": None, **own, "kind": "buy", "value": 1},
        )
    rules = Rules(WINDOWS_MS, dict.fromkeys(WINDOWS_MS, "first"), "correct")
    config = _config(prefix, rules, partitions=1, lateness="1s")
    events: dict[str, list[Bytes]] = {
        "impressions": [encoded(random_, event) for event in impressions],
        "conversions": [encoded(random_, event) for event in conversions],
    }
    placed = produce(config, kafka, events)
    rows = join_bounded(config, kafka, tmp_path)

    found = _terminals(rows)
    assert set(found) == set(placed)
    counts = Counter((about[0], _verdict(row)) for about, row in found.items())
    assert counts["impressions", "late"] > 0 and counts["conversions", "late"] > 0
    sampled = {placed[a][1] for a, r in found.items() if r.topic == "samples"}
    pairs: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i in sampled:
        pairs[impressions[i]["user_id"], impressions[i]["item_id"]].append(i)
    for about, row in found.items():
        stream, position = placed[about]
        event = (impressions if stream == "impressions" else conversions)[position]
        if row.topic == "late":
            assert event["event_ms"] <= row.watermark_ms
        if stream == "impressions" or row.topic == "duplicates":
            continue
        owner = owner_of(event, impressions, pairs[event["user_id"], event["item_id"]], WINDOWS_MS)
        if row.topic == "attributions":
            assert owner is not None
            assert row.json["impression_id"] == impressions[owner]["impression_id"]
        elif owner is not None:  # it would have belonged, had it come before that one closed
            assert row.topic == "late"
            assert impressions[owner]["event_ms"] + LONGEST_MS <= row.watermark_ms
    for position, (early, *corrections, final) in _samples(rows, placed).items():
        assert (early["state"], final["state"]) == ("early", "final")
        told = [k for k, label in early["labels"].items() if label]
        told += [kind for sample in corrections for kind in sample["labels"]]
        assert sorted(told) == sorted(k for k, label in final["labels"].items() if label)
        assert {name: final[name] for name in impressions[position]} == impressions[position]

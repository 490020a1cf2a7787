"""The join's state machine against the rules in plain Python, at a volume beyond Flink's reach."""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from typing import Any

import pytest

from tests.event_mutations import mutated
from tests.join_oracle import judge
from tests.join_samples import Rules, expect_samples, is_sampled_out
from tests.join_stories import START_MS, WINDOWS_MS, Event, encoded, stories
from tests.pair_drive import PairDrive, Record
from topics.conversion import decode_conversion
from topics.errors import RecordInvalid
from topics.impression import decode_impression_head

pytestmark = pytest.mark.slow

PROVE = os.environ.get("HEADWATER_PROVE") == "1"
EVENTS = int(os.environ.get("HEADWATER_FUZZ_EVENTS", "1000000" if PROVE else "20000"))
"""Of each of the two fuzzes."""
SEED = int(os.environ.get("HEADWATER_FUZZ_SEED", "1"))
PAIRS = 4_000
"""Of one story: some 13,000 events."""
CASES = [
    Rules(WINDOWS_MS, {"click": "sum", "buy": "last"}, "wait"),
    Rules(WINDOWS_MS, {"click": "max", "buy": "sum"}, "wait", keep_rate=0.3),
    Rules(WINDOWS_MS, {"click": "first", "buy": "max"}, "correct", 30_000),
    Rules(WINDOWS_MS, {"click": "last", "buy": "first"}, "correct", 30_000, keep_rate=0.3),
    # short ones: many pairs open and close while the others are open
    Rules({"click": 5_000, "buy": 60_000}, {"click": "sum", "buy": "last"}, "wait"),
]
LATENESS_MS = 90_000


@pytest.fixture(scope="session")
def drive(tmp_path_factory: pytest.TempPathFactory) -> PairDrive:
    return PairDrive(tmp_path_factory.mktemp("classes"))


def _hot_pair(random_: random.Random) -> tuple[list[Event], list[Event]]:
    """One user and item with many of everything, so that its state is spread."""
    own = {"user_id": "hot", "item_id": "hot"}
    impressions = [
        {"impression_id": f"h{n}", "event_ms": START_MS + n * 20_000, **own, "domain": "feed"}
        | {"features": {"text": "é" * random_.choice((1, 1, 3000))}}
        for n in range(60)
    ]
    conversions = []
    for n in range(200):
        kind = random_.choice(list(WINDOWS_MS))
        event: Event = {"conversion_id": f"hc{n}", "kind": kind, **own}
        event["impression_id"] = random_.choice((None, f"h{random_.randrange(60)}"))
        event["event_ms"] = START_MS + random_.randrange(1_300_000)
        event["value"] = random_.choice((None, 1, 0.1))
        conversions.append(event)
    return impressions, conversions


def _steps(
    random_: random.Random, events: list[tuple[bytes, Event]]
) -> list[tuple[bytes, bytes | int]]:
    """`events` in their order, and between them watermarks that make none of them late."""
    ahead = [2**62]
    for _, event in reversed(events):
        ahead.append(min(ahead[-1], event["event_ms"]))
    ahead.reverse()
    steps: list[tuple[bytes, bytes | int]] = []
    for position, (tag, event) in enumerate(events):
        if random_.random() < 0.02:
            steps.append((b"W", ahead[position] - 1))
        steps.append((tag, encoded(random_, event)[1]))
    return [*steps, (b"W", 2**61)]


def _play(drive: PairDrive, rules: Rules, seed: int) -> int:
    """One story; how many events it had. Fails where the join says anything but the oracle."""
    random_ = random.Random(seed)
    impressions, conversions = stories(random_, PAIRS)
    hot = _hot_pair(random_)
    impressions += hot[0]
    conversions += hot[1]
    events = [(b"I", event) for event in impressions] + [(b"C", event) for event in conversions]
    jitter = {id(event): random_.randrange(LATENESS_MS) for _, event in events}
    events.sort(key=lambda tagged: tagged[1]["event_ms"] + jitter[id(tagged[1])])
    found = drive.join(
        _steps(random_, events),
        {kind: (window, rules.values[kind]) for kind, window in rules.windows_ms.items()},
        policy=rules.policy,
        elapsed_ms=rules.elapsed_ms,
        lateness_ms=LATENESS_MS,
        negatives_kept=rules.keep_rate,
        # of 5,000 events: many pairs open and close within such a period, and are never written
        checkpoint_every=(3, 500, 5_000)[seed % 3],
    )
    _compare(events, found, rules)
    return len(events)


def _compare(events: list[tuple[bytes, Event]], found: list[Record], rules: Rules) -> None:
    at = {tag: [n for n, (t, _) in enumerate(events) if t == tag] for tag in (b"I", b"C")}
    impressions = [events[n][1] for n in at[b"I"]]
    conversions = [events[n][1] for n in at[b"C"]]
    expected = judge(impressions, conversions, dict(rules.windows_ms))
    samples: dict[int, list[dict[str, Any]]] = defaultdict(list)
    ended: dict[int, Record] = {}
    for record in found:
        if record.topic == "samples":
            samples[record.offset].append(record.value)
        else:
            assert record.offset not in ended, (record, ended[record.offset])
            ended[record.offset] = record
    for position, offset in enumerate(at[b"I"]):
        event = impressions[position]
        if expected.impressions[position] == "duplicate":
            assert (ended[offset].topic, ended[offset].value) == ("duplicates", event)
            assert offset not in samples
            continue
        assert offset not in ended
        labels = expected.labels[position]
        if is_sampled_out(event, labels, rules):
            assert offset not in samples
        else:
            expect_samples(samples[offset], event, labels, rules)
    topic = {"attributed": "attributions", "orphan": "orphans", "duplicate": "duplicates"}
    for position, offset in enumerate(at[b"C"]):
        assert ended[offset].topic == topic[expected.conversions[position]]
        if ended[offset].topic == "attributions":
            owner = impressions[expected.owner[position]]
            assert ended[offset].value["impression_id"] == owner["impression_id"]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_stories_end_as_the_rules_say(drive: PairDrive, case: int) -> None:
    """An equal part of EVENTS under each case."""
    played, seed = 0, SEED * 1_000_000 + case * 100_000
    while played < EVENTS // len(CASES):
        played += _play(drive, CASES[case], seed)
        seed += 1


@pytest.mark.parametrize("stream", ["impressions", "conversions"])
def test_the_scanner_and_the_audit_agree_on_mutated_bytes(drive: PairDrive, stream: str) -> None:
    """Half of EVENTS each: an event is one for both, or for neither."""
    random_ = random.Random(SEED)
    impressions, conversions = stories(random_, 200)
    good = impressions if stream == "impressions" else conversions
    left = EVENTS // 2
    accepted = 0
    while left > 0:
        batch = [mutated(random_, random_.choice(good)) for _ in range(min(left, 50_000))]
        reasons = drive.reasons(stream, WINDOWS_MS, batch)
        assert len(reasons) == len(batch)
        for value, reason in zip(batch, reasons, strict=True):
            assert (reason == "") == _decodes(stream, value), (reason, value[:500])
        accepted += reasons.count("")
        left -= len(batch)
    assert 0 < accepted < EVENTS // 2
    behind = [
        json.dumps(good[0]).encode() + bytes([byte]) for byte in range(256)
    ]  # any one byte behind an event
    told = [reason == "" for reason in drive.reasons(stream, WINDOWS_MS, behind)]
    assert told == [_decodes(stream, value) for value in behind]


def _decodes(stream: str, value: bytes) -> bool:
    try:
        if stream == "impressions":
            decode_impression_head(value)
        else:
            decode_conversion(value, frozenset(WINDOWS_MS))
    except RecordInvalid:
        return False
    return True


def test_numbers_are_written_in_decimal(drive: PairDrive) -> None:
    random_ = random.Random(SEED)
    numbers = {
        sign * (10**power + off) for power in range(19) for off in (-1, 0, 1) for sign in (1, -1)
    }
    numbers |= {2**63 - 1, -(2**63)}
    numbers |= {random_.getrandbits(63) >> random_.randrange(63) for _ in range(3_000)}
    assert drive.decimals(sorted(numbers)) == [str(number) for number in sorted(numbers)]

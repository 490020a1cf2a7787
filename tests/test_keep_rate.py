"""Down-sampled negatives: the log-odds of what the join writes are off by exactly ln(keep_rate),
kind by kind, also where kinds depend on each other."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from tests.join_stories import START_MS, WINDOWS_MS, Event
from tests.pair_drive import PairDrive, Record
from topics.sample import negatives_kept

pytestmark = pytest.mark.slow

IMPRESSIONS = 40_000
KEEP_RATE = 0.05
ELAPSED_MS = 30_000
SIGMAS = 4.5


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> PairDrive:
    return PairDrive(tmp_path_factory.mktemp("classes"))


def _stream(random_: random.Random) -> list[tuple[bytes, Event]]:
    """Impressions of which a fifth are clicked, and nearly all who buy have clicked before: whoever
    keeps all of an impression because it was clicked has too many negatives of `buy`."""
    events: list[tuple[bytes, Event]] = []
    for n in range(IMPRESSIONS):
        own = {"user_id": f"u{n}", "item_id": "i"}
        shown = {"impression_id": f"p{n}", "event_ms": START_MS + n * 10, "domain": "d"}
        events.append((b"I", {**shown, **own, "features": {}}))
        clicked = random_.random() < 0.2
        bought = random_.random() < (0.3 if clicked else 0.01)
        for kind, did in (("click", clicked), ("buy", bought)):
            delay_ms = random_.randrange(WINDOWS_MS[kind])
            if did:
                said = {"conversion_id": f"{kind}{n}", "impression_id": f"p{n}", "kind": kind}
                at = {"event_ms": shown["event_ms"] + delay_ms, "value": None}
                events.append((b"C", {**said, **own, **at}))
    events.sort(key=lambda tagged: tagged[1]["event_ms"])
    return events


def _joined(drive: PairDrive, events: list[tuple[bytes, Event]], policy: str) -> list[Any]:
    steps: list[tuple[bytes, bytes | int]] = []
    for position, (tag, event) in enumerate(events):
        if position % 5_000 == 0:
            steps.append((b"W", event["event_ms"] - 1))
        steps.append((tag, json.dumps(event).encode()))
    found: list[Record] = drive.join(
        [*steps, (b"W", 2**61)],
        {kind: (window, "first") for kind, window in WINDOWS_MS.items()},
        policy=policy,
        elapsed_ms=ELAPSED_MS,
        lateness_ms=1000,
        negatives_kept=KEEP_RATE,
        checkpoint_every=1000,
    )
    return [record.value for record in found if record.topic == "samples"]


def _expect_log_odds(positives: int, negatives: int, all_negatives: int) -> None:
    """`negatives` were kept of `all_negatives`: bare log-odds are right within sampling noise."""
    served = math.log(positives / negatives) + math.log(KEEP_RATE)
    noise = math.sqrt((1 - KEEP_RATE) / negatives)
    assert abs(served - math.log(positives / all_negatives)) < SIGMAS * noise


@pytest.mark.parametrize("policy", ["wait", "correct"])
def test_log_odds_are_off_by_the_keep_rate_alone(drive: PairDrive, policy: str) -> None:
    events = _stream(random.Random(7))
    samples = _joined(drive, events, policy)
    assert all(sample["keep_rate"] == KEEP_RATE for sample in samples)
    finals = [sample for sample in samples if sample["state"] == "final"]
    for kind in WINDOWS_MS:
        true = sum(event.get("kind") == kind for _, event in events)
        labels = [sample["labels"][kind] for sample in finals if kind in sample["labels"]]
        assert sum(labels) == true  # no positive is lost
        _expect_log_odds(true, labels.count(0), IMPRESSIONS - true)
        # and what counts rates uses the kept impressions alone
        kept = [sample["labels"][kind] for sample in finals if sample["kept"]]
        rate = true / IMPRESSIONS
        noise = math.sqrt(rate * (1 - rate) / len(kept))
        assert abs(sum(kept) / len(kept) - rate) < SIGMAS * noise
    if policy == "correct":
        _expect_streams(events, samples)


def _expect_streams(events: list[tuple[bytes, Event]], samples: list[Any]) -> None:
    """What early and correction say together: each positive once, observed negatives sampled."""
    shown = {e["impression_id"]: e["event_ms"] for t, e in events if t == b"I"}
    for kind in WINDOWS_MS:
        delays = [
            event["event_ms"] - shown[event["impression_id"]]
            for _, event in events
            if event.get("kind") == kind
        ]
        soon = sum(delay <= ELAPSED_MS for delay in delays)
        early = [s for s in samples if s["state"] == "early" and kind in s["labels"]]
        later = [s for s in samples if s["state"] == "correction" and kind in s["labels"]]
        assert sum(s["labels"][kind] for s in early) == soon
        assert len(later) == len(delays) - soon
        observed = sum(s["labels"][kind] == 0 for s in early)
        _expect_log_odds(len(delays), observed, IMPRESSIONS - soon)


def test_the_draw_is_fair_for_ids_that_count_up() -> None:
    for pattern in ("i{}", "p-{:08d}", "{}-\u00e9"):
        kept = [negatives_kept(pattern.format(n), KEEP_RATE) for n in range(IMPRESSIONS)]
        noise = math.sqrt(KEEP_RATE * (1 - KEEP_RATE) / IMPRESSIONS)
        assert abs(sum(kept) / IMPRESSIONS - KEEP_RATE) < SIGMAS * noise
    assert all(negatives_kept(f"i{n}", 1.0) for n in range(1000))

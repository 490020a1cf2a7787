"""What an impression's samples must say, given the conversions that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.join_stories import Event
from topics.sample import negatives_kept

Labels = Mapping[str, list[Event]]
"""Kind -> its conversions in order of (event_ms, conversion_id)."""


@dataclass(frozen=True)
class Rules:
    """The part of the config that decides about samples; `values` by kind."""

    windows_ms: Mapping[str, int]
    values: Mapping[str, str]
    policy: str
    elapsed_ms: int = 0
    keep_rate: float = 1.0

    @property
    def longest_ms(self) -> int:
        return max(self.windows_ms.values())


def is_sampled_out(event: Event, labels: Labels, rules: Rules) -> bool:
    """No sample at all: its negatives are not kept, and it has no positives."""
    return not any(labels.values()) and not negatives_kept(event["impression_id"], rules.keep_rate)


def value_of(events: list[Event], policy: str) -> float | None:
    """The value of one kind's conversions, in their order; None where there is none."""
    if policy == "first":
        first = events[0]["value"]
        return None if first is None else float(first)
    amounts = [float(event["value"]) for event in events if event["value"] is not None]
    if not amounts:
        return None
    if policy == "max":
        return max(amounts)
    if policy == "last":
        return amounts[-1]
    total = amounts[0]
    for amount in amounts[1:]:
        total += amount
    return total


def expect_samples(
    samples: list[dict[str, Any]], event: Event, labels: Labels, rules: Rules
) -> None:
    """`samples` by revision are those of `event`; in them everything was on time."""
    positive = {kind: events for kind, events in labels.items() if events}
    kept = negatives_kept(event["impression_id"], rules.keep_rate)
    assert [sample["revision"] for sample in samples] == list(range(len(samples)))
    for sample in samples:
        assert {name: sample[name] for name in event} == event
        assert (sample["keep_rate"], sample["kept"]) == (rules.keep_rate, kept)
        assert ("delayed" in sample) == (rules.policy == "correct")
    if rules.policy == "wait":
        [final] = samples
        _expect(final, event, positive, kept, rules)
        assert (final["state"], final["elapsed_ms"]) == ("final", rules.longest_ms)
        return
    *told, final = samples
    assert (final["state"], final["elapsed_ms"]) == ("final", rules.longest_ms)
    _expect(final, event, positive, kept, rules)
    soon = {
        kind: [c for c in events if c["event_ms"] - event["event_ms"] <= rules.elapsed_ms]
        for kind, events in positive.items()
    }
    soon = {kind: events for kind, events in soon.items() if events}
    if kept or soon:
        early, *told = told
        assert (early["state"], early["elapsed_ms"]) == ("early", rules.elapsed_ms)
        _expect(early, event, soon, kept, rules)
        assert early["delayed"] == dict.fromkeys(soon, 0)
    assert sorted(k for s in told for k in s["labels"]) == sorted(set(positive) - set(soon))
    for sample in told:
        _expect_correction(sample, event, positive)
    assert final["delayed"] == {kind: int(kind not in soon) for kind in positive}


def _expect(sample: dict[str, Any], event: Event, told: Labels, kept: bool, rules: Rules) -> None:
    kinds = rules.windows_ms if kept else told
    assert sample["labels"] == {kind: int(kind in told) for kind in kinds}
    delays = {kind: events[0]["event_ms"] - event["event_ms"] for kind, events in told.items()}
    assert sample["delays_ms"] == delays
    assert sample["counts"] == {kind: len(events) for kind, events in told.items()}
    values = {kind: value_of(events, rules.values[kind]) for kind, events in told.items()}
    assert sample["values"] == {kind: v for kind, v in values.items() if v is not None}


def _expect_correction(sample: dict[str, Any], event: Event, positive: Labels) -> None:
    [(kind, label)] = sample["labels"].items()
    assert (sample["state"], label) == ("correction", 1)
    assert (sample["counts"], sample["delayed"]) == ({kind: 1}, {kind: 1})
    assert sample["delays_ms"] == {kind: sample["elapsed_ms"]}
    [*those] = [
        c for c in positive[kind] if c["event_ms"] - event["event_ms"] == sample["elapsed_ms"]
    ]
    amounts = [{} if c["value"] is None else {kind: float(c["value"])} for c in those]
    assert sample["values"] in amounts

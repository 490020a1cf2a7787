"""The rules of attribution once more, in the plainest Python: all events at hand, no watermark.

Right for input in which nothing is behind the watermark: there the verdicts depend on the events
alone (and, between events with one id, on which came first).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]


@dataclass
class Verdicts:
    """By position in the given lists; `labels[i][kind]` are impression i's conversions."""

    impressions: list[str] = field(default_factory=list)
    conversions: list[str] = field(default_factory=list)
    owner: dict[int, int] = field(default_factory=dict)
    labels: dict[int, dict[str, list[Event]]] = field(default_factory=dict)


def judge(
    impressions: list[Event], conversions: list[Event], windows_ms: dict[str, int]
) -> Verdicts:
    """Verdict of every event: sampled | attributed | orphan | duplicate."""
    verdicts = Verdicts()
    pairs: dict[tuple[str, str], list[int]] = defaultdict(list)
    seen: set[tuple[str, str, str, str]] = set()
    for i, event in enumerate(impressions):
        key = ("impression", event["user_id"], event["item_id"], event["impression_id"])
        verdicts.impressions.append("duplicate" if key in seen else "sampled")
        if key not in seen:
            pairs[event["user_id"], event["item_id"]].append(i)
            verdicts.labels[i] = defaultdict(list)
        seen.add(key)
    for c, event in enumerate(conversions):
        key = ("conversion", event["user_id"], event["item_id"], event["conversion_id"])
        if key in seen:
            verdicts.conversions.append("duplicate")
            continue
        seen.add(key)
        owner = owner_of(event, impressions, pairs[event["user_id"], event["item_id"]], windows_ms)
        verdicts.conversions.append("orphan" if owner is None else "attributed")
        if owner is not None:
            verdicts.owner[c] = owner
            verdicts.labels[owner][event["kind"]].append(event)
    for labels in verdicts.labels.values():
        for events in labels.values():
            events.sort(key=lambda event: (event["event_ms"], event["conversion_id"]))
    return verdicts


def owner_of(
    conversion: Event, impressions: list[Event], pair: list[int], windows_ms: dict[str, int]
) -> int | None:
    """Position of the impression that the conversion belongs to, among those of its pair."""
    t = conversion["event_ms"]
    if conversion["impression_id"] is not None:
        pair = [i for i in pair if impressions[i]["impression_id"] == conversion["impression_id"]]
    else:
        pair = [i for i in pair if impressions[i]["event_ms"] <= t]
    if not pair:
        return None
    owner = max(pair, key=lambda i: (impressions[i]["event_ms"], impressions[i]["impression_id"]))
    delay_ms = t - impressions[owner]["event_ms"]
    return owner if 0 <= delay_ms <= windows_ms[conversion["kind"]] else None

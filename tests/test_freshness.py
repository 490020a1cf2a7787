"""Freshness: what is observed, what is not, and the exact quantiles beside the histogram."""

from __future__ import annotations

import json

from prometheus_client import CollectorRegistry

from downstream.freshness import Freshness
from downstream.table import Change
from topics.names import Kind


def _change(kind: Kind, produced_ms: int, *, newer: bool = True) -> Change:
    return Change(kind, "someone", produced_ms, newer)


def test_only_newer_events_are_observed_and_ids_are_no_labels() -> None:
    registry = CollectorRegistry()
    freshness = Freshness(registry)
    assert freshness.quantiles() == {}
    ages_ms = range(10, 1010, 10)
    freshness.observe([_change("user", 1_000_000 - age) for age in ages_ms], 1000.0)
    freshness.observe([_change("user", 0, newer=False)], 1000.0)
    freshness.observe([_change("cross", 999_750)], 1000.0)
    found = json.loads(freshness.page())
    assert set(found) == {"user", "cross"}
    assert found["user"]["count"] == 100
    assert abs(found["user"]["p50"] - 0.505) < 1e-6
    assert abs(found["user"]["p99"] - 0.9901) < 1e-3
    assert found["user"]["max"] == 1.0
    assert found["cross"]["p50"] == 0.25
    name = "headwater_representation_freshness_seconds"
    assert registry.get_sample_value(f"{name}_count", {"kind": "user"}) == 100
    assert registry.get_sample_value(f"{name}_bucket", {"kind": "user", "le": "0.5"}) == 50
    labels = {label for metric in registry.collect() for s in metric.samples for label in s.labels}
    assert labels == {"kind", "le"}

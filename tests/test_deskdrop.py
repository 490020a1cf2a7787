"""The real log through the real join: last touch, exactly as counted independently of us."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from runtime.sources.deskdrop import DeskdropTraffic
from settings.config import Config
from tests.conftest import data_file
from tests.join_run import Bytes, join_bounded, produce
from topics.event import event_key

pytestmark = [pytest.mark.kafka, pytest.mark.flink, pytest.mark.slow, pytest.mark.data]

WINDOWS = ("60s", "10min", "1h", "24h", "7d")
ATTRIBUTED = {
    "like": (2360, 4544, 5107, 5358, 5400),
    "bookmark": (841, 1403, 1607, 1752, 1793),
    "follow": (450, 1122, 1284, 1350, 1361),
    "comment": (401, 1285, 1498, 1583, 1593),
}
"""Conversions attributed per window: shared/data/README.md counts them without any of our code."""
CONVERSIONS = {"like": 5745, "bookmark": 2463, "follow": 1407, "comment": 1611}


def test_every_window_gives_the_independent_count(kafka: str, prefix: str, tmp_path: Path) -> None:
    """One run: each conversion is sent once per window, as a kind of its own with that window."""
    traffic = DeskdropTraffic(data_file("deskdrop_users_interactions.csv.zip"))
    kinds = {f"{k}.{window}": {"window": window} for k in CONVERSIONS for window in WINDOWS}
    config = Config.model_validate(
        {
            "kafka": {"topic_prefix": prefix},
            "kinds": kinds,
            # Only here do ordered events have a year of gaps between two of one partition.
            "events": {"future_bound": "365d"},
            "join": {"policy": "wait", "lateness": "5s"},
        }
    )
    events: dict[str, list[Bytes]] = {"impressions": [], "conversions": []}
    for event in traffic.events():
        fields = json.loads(event.line)
        key = event_key(fields["user_id"], fields["item_id"])
        if event.stream == "impressions":
            events["impressions"].append((key, event.line))
            continue
        for window in WINDOWS:
            copy = fields | {
                "kind": f"{fields['kind']}.{window}",
                "conversion_id": f"{fields['conversion_id']}.{window}",
            }
            events["conversions"].append((key, json.dumps(copy).encode()))
    placed = produce(config, kafka, events)
    rows = join_bounded(config, kafka, tmp_path)

    topics = Counter(row.topic for row in rows)
    assert topics["samples"] == len(events["impressions"])
    assert topics["attributions"] + topics["orphans"] == len(events["conversions"])
    assert len(rows) == len(placed)
    attributed = Counter(row.json["kind"] for row in rows if row.topic == "attributions")
    assert attributed == {
        f"{kind}.{window}": count
        for kind, counts in ATTRIBUTED.items()
        for window, count in zip(WINDOWS, counts, strict=True)
    }
    orphans = Counter(row.json["kind"] for row in rows if row.topic == "orphans")
    for name in kinds:
        kind = name.split(".")[0]
        assert attributed[name] + orphans[name] == CONVERSIONS[kind]

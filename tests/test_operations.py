"""A join's life around its events, over the real broker and Flink: it replays the live topics and
hands over at exact offsets, goes on from a savepoint under a changed config, and meets idle
partitions, new ones, clocks ahead and bursts of the past. The audit stays at zero throughout."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from runtime.config_file import write_config
from runtime.replaying import ReplayReport, prepare, replay_live
from runtime.scrape import Scrape, scrape
from runtime.watermarks import watermark_findings
from settings.config import Config
from stream.audit import audit
from stream.audit_live import LiveAudit
from stream.reprocess import reprocess_undecodable
from tests.join_process import QUICK_JVM, JoinProcess, wait_for_the_end
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.event import event_key
from topics.scan import end_offsets

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.flink,
    pytest.mark.slow,
    pytest.mark.kill,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not os.environ.get("HEADWATER_PROVE"),
        reason="three starts of the join: HEADWATER_PROVE=1 runs it, with `make prove`",
    ),
]
SECONDS = 600.0
"""Waits end as soon as what they wait for is there; this is for machines that are very busy."""
PAIRS = 40
LIKES = 3


class _Traffic:
    """Events of now, pair after pair."""

    def __init__(self, config: Config, kafka: str) -> None:
        self._config = config
        self._producer = Producer(producer_settings(config, kafka))
        self.numbers = itertools.count()

    def send(self, *, kind: str = "buy", shift_ms: int = 0, pairs: int = PAIRS) -> None:
        """Per pair an impression and a conversion 50 ms after it, `shift_ms` from now."""
        now_ms = int(time.time() * 1000) + shift_ms
        for _ in range(pairs):
            n = next(self.numbers)
            pair: dict[str, Any] = {"user_id": f"u{n}", "item_id": "a", "event_ms": now_ms}
            own = {"impression_id": f"i{n}", "domain": "d", "features": {"age": 3}}
            self._produce("impressions", pair | own)
            done = {"conversion_id": f"c{n}", "kind": kind, "impression_id": None, "value": 1.5}
            self._produce("conversions", pair | done | {"event_ms": now_ms + 50})
        assert self._producer.flush(120) == 0

    def _produce(self, stream: str, event: dict[str, Any]) -> None:
        key = event_key(event["user_id"], event["item_id"])
        self._producer.produce(self._config.topic(stream), json.dumps(event).encode(), key)
        self._producer.poll(0)


def _config(prefix: str) -> Config:
    return Config.model_validate(
        {
            "kafka": {"topic_prefix": prefix, "partitions": 1},
            "kinds": {"buy": {"window": "2s"}},
            "join": {
                "policy": "correct",
                "lateness": "100ms",
                "idle_timeout": "1s",
                "parallelism": 1,
            },
        }
    )


class _Life:
    """What happened, for the tests below to look at."""

    def __init__(self, kafka: str, folder: Path) -> None:
        self.kafka = kafka
        self.live = _config(f"life-{time.time_ns()}")
        self.home = folder / "next"
        self.traffic = _Traffic(self.live, kafka)
        self.hand_over: ReplayReport
        self.shadow: Config
        self.join: JoinProcess
        self.scrape: Scrape

    def replay(self) -> None:
        ensure_topics(self.live, self.kafka)
        self.traffic.send()
        self.traffic.send(kind="like", pairs=LIKES)  # no kind yet
        self.shadow = prepare(self.live, self.kafka, self.home, "next", live=True, replace=False)
        self.hand_over = replay_live(self.shadow, self.kafka, self.home, lambda _: None)

    def go_on(self) -> None:
        """Under a config with one more kind, whose events came before it was known."""
        self.traffic.send()
        kinds = {**self.shadow.kinds, "like": self.shadow.kinds["buy"]}
        self.shadow = self.shadow.model_copy(update={"kinds": kinds})
        write_config(self.shadow, self.home / "config.toml", comment="one more kind")
        path = self.home / "config.toml"
        self.join = JoinProcess(path, self.kafka, self.home / "join", "--metrics-port", "0")
        self.join.start()
        wait_for_the_end(self.shadow, self.kafka, self.join, SECONDS)

    def grow(self) -> None:
        """One more partition of each stream while the join runs; keys move."""
        admin = AdminClient({"bootstrap.servers": self.kafka})
        topics = [self.live.topic(stream) for stream in ("impressions", "conversions")]
        for future in admin.create_partitions([NewPartitions(t, 2) for t in topics]).values():
            future.result(30)
        time.sleep(1)
        numbers = self.traffic.numbers
        self.traffic = _Traffic(self.live, self.kafka)  # asks for the partitions anew
        self.traffic.numbers = numbers
        self.traffic.send()
        wait_for_the_end(self.shadow, self.kafka, self.join, SECONDS)

    def disturb(self) -> None:
        self.traffic.send(shift_ms=3 * 86_400_000, pairs=3)  # one clock ahead
        self.traffic.send(shift_ms=-3_600_000, pairs=5)  # a burst of the past
        self.traffic.send()
        wait_for_the_end(self.shadow, self.kafka, self.join, SECONDS)
        self.scrape = scrape(self.join.metrics_port())


@pytest.fixture(scope="module")
def life(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Life]:
    life = _Life(kafka, tmp_path_factory.mktemp("life"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JVM_ARGS", QUICK_JVM)
        life.replay()
    try:
        life.go_on()
        life.grow()
        life.disturb()
        yield life
    finally:
        if hasattr(life, "join"):
            life.join.stop()


def test_the_replay_stops_where_the_live_job_begins(life: _Life) -> None:
    """The savepoint is what the next run restored; its offsets are those that the report states."""
    hand_over = life.hand_over.hand_over
    assert hand_over == {"impressions": {0: PAIRS + LIKES}, "conversions": {0: PAIRS + LIKES}}
    assert life.hand_over.savepoint is not None
    assert f'"restored_from": "{life.hand_over.savepoint}"' in life.join.said()


def test_nothing_is_lost_and_nothing_twice(life: _Life) -> None:
    """Over the hand-over, a partition added, events ahead and behind, and then a kill."""
    life.join.kill()
    life.traffic.send()
    life.join.start()
    events = wait_for_the_end(life.shadow, life.kafka, life.join, SECONDS)
    report = audit(life.shadow, life.kafka, settle_seconds=30)
    assert report.balanced, report
    assert report.impressions.in_ + report.conversions.in_ == events
    ends = end_offsets(life.shadow, life.kafka, ["impressions", "conversions"])
    assert len(ends) == 4 and all(ends.values())  # both new partitions have events
    assert report.impressions.undecodable == 3 and report.impressions.late == 5


def test_a_kind_added_later_takes_its_events_again(life: _Life) -> None:
    report = reprocess_undecodable(life.shadow, life.kafka)
    assert report.sent == LIKES and report.refused_total == 6  # those of the future stay
    wait_for_the_end(life.shadow, life.kafka, life.join, SECONDS)
    found = audit(life.shadow, life.kafka, settle_seconds=30)
    assert found.balanced, found
    likes = found.conversions.by_kind["like"]
    assert likes.in_ == 2 * LIKES and likes.undecodable == LIKES


def test_each_partition_is_watched_and_doctor_names_what_is_odd(life: _Life) -> None:
    def seen(name: str) -> dict[tuple[str, str], float]:
        return {(of["stream"], of["partition"]): v for of, v in life.scrape.find(name)}

    ahead = seen("headwater_partition_future_events_total")
    assert sum(v for (stream, _), v in ahead.items() if stream == "impressions") == 3
    assert max(seen("headwater_partition_behind_seconds").values()) > 3000
    assert set(seen("headwater_partition_event_timestamp_seconds")) == set(
        itertools.product(("impressions", "conversions"), "01")
    )
    told = {f.check: f for f in watermark_findings(life.shadow, life.scrape)}
    assert "from the future" in told["clocks"].says and "reprocess" in told["clocks"].fix
    assert "late" in told["late events"].says and "lateness" in told["late events"].fix
    assert told["watermark"].verdict == "ok", told["watermark"]


def test_the_live_audit_goes_round_after_round(life: _Life) -> None:
    live = LiveAudit(life.shadow, life.kafka, settle_seconds=30)
    first = live.round()
    assert first.balanced, first
    held = live.events_held
    life.traffic.send()
    wait_for_the_end(life.shadow, life.kafka, life.join, SECONDS)
    second = live.round()
    assert second.balanced, second
    assert second.settled > 0 and live.events_held <= held + 2 * PAIRS

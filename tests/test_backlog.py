"""The real join over a backlog: conversions are not read far ahead of their impressions."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
import pytest
import tomlkit
from confluent_kafka import Producer

from settings.config import Config
from settings.load import load_config
from stream.audit import audit
from tests.join_process import JoinProcess, wait_for, wait_for_the_end
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.errors import TopicError
from topics.event import event_key
from topics.lag import committed_offsets
from topics.names import CONVERSIONS, EVENT_TOPICS, IMPRESSIONS, join_group

COUNT = 200_000
EVERY = 5
"""Impressions to a conversion: read as fast as they come, both topics would advance alike."""
AHEAD = 8_000
"""Conversions of the longest window, and of what a consumer has fetched before it is told."""
STEP_MS = 10
HOUR_MS = 3_600_000
WINDOW = "10s"


def _write_backlog(config: Config, bootstrap: str) -> None:
    start_ms = int(time.time() * 1000) - HOUR_MS - COUNT * STEP_MS
    producer = Producer(producer_settings(config, bootstrap))

    def send(stream: str, key: bytes, line: str, at_ms: int) -> None:
        producer.produce(config.topic(stream), line.encode(), key, timestamp=at_ms)
        producer.poll(0)

    for i in range(COUNT):
        at_ms = start_ms + i * STEP_MS
        user, item = f"u{i % 999}", f"i{i}"
        pair = f'"user_id":"{user}","item_id":"{item}","impression_id":"m{i}"'
        send(
            IMPRESSIONS,
            event_key(user, item),
            f'{{{pair},"domain":"feed","event_ms":{at_ms},"features":{{}}}}',
            at_ms,
        )
        if i % EVERY == 0:
            at_ms += 100 * STEP_MS
            line = f'{{{pair},"conversion_id":"c{i}","kind":"click","event_ms":{at_ms}}}'
            send(CONVERSIONS, event_key(user, item), line, at_ms)
        if i % 50_000 == 0:
            producer.flush()
    assert producer.flush(60) == 0


def _offsets_of_flink(join: JoinProcess) -> dict[str, int]:
    """Topic -> the newest offset that Flink shows the join's task to have been given."""
    started = re.findall(r'"job": "(\w+)", "rest": "([^"]+)"', join.said())[-1]
    with httpx.Client(base_url=f"{started[1]}/jobs/{started[0]}") as flink:
        found: dict[str, int] = {}
        for vertex in flink.get("").json()["vertices"]:
            path = f"/vertices/{vertex['id']}/subtasks/metrics"
            for name in (metric["id"] for metric in flink.get(path).json()):
                if of := re.search(r"topic\.(.+)\.partition\.0\.currentOffset$", name):
                    (shown,) = flink.get(path, params={"get": name}).json()
                    found[of.group(1)] = int(shown["max"])
    return found


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.flink
@pytest.mark.timeout(300)
def test_a_backlog_is_read_about_in_order_of_event_time(
    kafka: str, prefix: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "config.toml"
    values = {
        "kafka": {"topic_prefix": prefix, "partitions": 1},
        "kinds": {"click": {"window": WINDOW}},
        "join": {"checkpoint_interval": "200ms", "parallelism": 1},
    }
    path.write_text(tomlkit.dumps(values), encoding="utf-8")
    config = load_config(path, env={}).config
    ensure_topics(config, kafka)
    _write_backlog(config, kafka)
    offsets = committed_offsets(config, kafka, join_group(config), EVENT_TOPICS)
    join = JoinProcess(path, kafka, tmp_path / "state")
    request.addfinalizer(join.stop)
    join.start()
    looks: list[tuple[int, int]] = []
    deadline = time.monotonic() + 120
    while not looks or looks[-1][0] < COUNT:
        assert time.monotonic() < deadline, join.said()
        try:
            found = {stream: offset for (stream, _), offset in offsets().items()}
        except TopicError:
            found = {}
        look = found.get(IMPRESSIONS, 0), found.get(CONVERSIONS, 0)
        if look[0] > 0 and (not looks or look != looks[-1]):
            looks.append(look)
        time.sleep(0.05)
    early = [(i, c) for i, c in looks if i < COUNT // 2]
    assert early, looks  # else the machine was too fast to be watched
    assert all(c <= i // EVERY + AHEAD for i, c in early), looks
    assert any(c > 0 for _, c in early), looks  # and they are read beside them, not behind
    wait_for_the_end(config, kafka, join, 60)
    last = {IMPRESSIONS: COUNT - 1, CONVERSIONS: COUNT // EVERY - 1}
    newest = {config.topic(stream).replace(".", "_"): offset for stream, offset in last.items()}
    wait_for("Flink's offsets", lambda: _offsets_of_flink(join) == newest, 30)
    report = audit(config, kafka, settle_seconds=30)
    assert report.balanced, report
    assert report.impressions.in_ == COUNT and report.conversions.attributed == COUNT // EVERY

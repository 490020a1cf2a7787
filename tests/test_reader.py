"""RepresentationReader against the real broker."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client import CollectorRegistry

from downstream.errors import ReaderFailed, ReaderTimeout
from downstream.freshness import Freshness
from downstream.reader import RepresentationReader
from runtime.broker import EmbeddedBroker
from tests.publishing import DIM, manifest, records, representation, stack_config, tombstone
from tests.readable import Publisher
from topics import publisher as plain
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.errors import TopicUnavailable, TopicUnknown, WireVersionError
from topics.lag import LagMonitor, committed_offsets
from topics.names import REPRESENTATION_TOPICS
from topics.publisher import Record
from topics.scan import end_offsets

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
USERS = "representations.user"
WAIT_S = 120.0
"""Waits end when what they wait for is there; this is for machines that are very busy."""


def test_bootstrap_then_tail_with_deletions(kafka: str, prefix: str) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    with RepresentationReader(config, kafka) as empty:
        assert empty.version is None and empty.staleness() == math.inf
        assert empty.matrix("user")[0] == [] and empty.get("user", "a") is None
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    publisher.publish(1, records(representation(f"u{i}", 1) for i in range(9)), manifest(1))
    publisher.publish(2, records([representation("user:a", 2, kind="cross")]), manifest(2))
    freshness, began = Freshness(CollectorRegistry()), time.time()
    with RepresentationReader(config, kafka, on_applied=freshness.observe) as reader:
        assert reader.version == 2
        ids, vectors = reader.matrix("user")
        assert sorted(ids) == [f"u{i}" for i in range(9)]
        assert vectors.dtype == np.float32 and vectors.tolist() == [[1.0] * DIM] * 9
        found = reader.get("cross", "user:a")
        assert found is not None and found.vector is not None
        assert (found.version, found.step, found.vector.tolist()) == (2, 20, [2.0] * DIM)
        assert freshness.quantiles() == {}  # history is not freshness
        publisher.publish(
            3, records([tombstone("u0", 3), representation("u1", 3), *_swept(2, 3)]), manifest(3)
        )
        assert reader.wait_until(3, WAIT_S)
        assert reader.get("user", "u0") is None
        assert sorted(reader.matrix("user")[0]) == [f"u{i}" for i in range(1, 9)]
        assert 0 <= reader.staleness() <= time.time() - began + 1
        with pytest.raises(ReaderTimeout, match=r"version 4 did not come in 0.1 s, newest: 3"):
            reader.wait_until(4, 0.1)
    _wait_for(lambda: bool(freshness.quantiles()))
    assert freshness.quantiles()["user"]["count"] == 1  # u1; u2's newest event is no newer
    assert 0 < freshness.quantiles()["user"]["p99"] <= time.time() - began + 1
    with pytest.raises(ReaderFailed, match="closed"):
        reader.matrix("user")
    publisher.close()


def _swept(entity: int, version: int) -> list[object]:
    return [representation(f"u{entity}", version, event_ms=1000)]


def _wait_for(true: object, seconds: float = WAIT_S) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def test_half_a_version_is_never_seen(kafka: str, prefix: str) -> None:
    config = stack_config(prefix, partitions=3)
    ensure_topics(config, kafka)
    publisher = plain.Publisher(config, kafka, f"{prefix}-publisher")
    ids = [f"u{i}" for i in range(500)]
    publisher.publish(1, records(representation(i, 1) for i in ids), manifest(1))
    seen: set[int] = set()
    mixed: list[tuple[int | None, set[float]]] = []
    done = threading.Event()
    with RepresentationReader(config, kafka, kinds=["user"]) as reader:

        def look() -> None:
            while not done.is_set():
                version, held, vectors = reader.matrix_of_version("user")
                values = set(vectors[:, 0].tolist())
                seen.add(version or 0)
                if len(held) != len(ids) or values != {version}:
                    mixed.append((version, values))

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in range(2, 31):
            publisher.publish(
                version, records(representation(i, version) for i in ids), manifest(version)
            )
            if version % 4 == 0:  # or it would see few of them on a machine that is very busy
                _wait_for(lambda version=version: version in seen)
        reader.wait_until(30, WAIT_S)
        done.set()
        for thread in threads:
            thread.join()
    publisher.close()
    assert mixed == []
    assert len(seen) > 5  # it did look while versions changed


def test_crash_before_the_commit_shows_nothing_of_the_version(kafka: str, prefix: str) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    publisher.publish(1, records(representation(f"u{i}", 1) for i in range(8)), manifest(1))
    publisher.close()
    outbox = records(representation(f"u{i}", 2) for i in range(8))
    with RepresentationReader(config, kafka) as tailing:
        dead = Producer(producer_settings(config, kafka, transactional_id=f"{prefix}-publisher"))
        dead.init_transactions(60)
        dead.begin_transaction()
        for name, key, value, headers in outbox:
            dead.produce(config.topic(name), key=key, value=value, headers=headers)
        dead.flush(60)
        time.sleep(0.5)
        with RepresentationReader(config, kafka) as booting:  # does not hang on the open end
            for reader in (tailing, booting):
                assert reader.version == 1
                assert set(reader.matrix("user")[1][:, 0].tolist()) == {1}
        publisher = Publisher(config, kafka, f"{prefix}-publisher")  # the trainer is back
        # A version that leaves the aborted partitions alone: its end offsets there lie behind
        # markers only, which no record will ever tell the reader of.
        publisher.publish(2, records([representation("a", 2, kind="item")]), manifest(2))
        assert tailing.wait_until(2, WAIT_S)
        assert set(tailing.matrix("user")[1][:, 0].tolist()) == {1}
        publisher.publish(3, outbox, manifest(3))
        publisher.publish(3, outbox, manifest(3))  # and once more, as after a crash
        assert tailing.wait_until(3, WAIT_S)
        assert set(tailing.matrix("user")[1][:, 0].tolist()) == {2}
        with RepresentationReader(config, kafka) as booting:
            assert booting.version == 3
            assert len(booting.matrix("user")[0]) == 8
    publisher.close()
    dead.purge()


def test_unknown_wire_version_stops_the_reader_by_name(kafka: str, prefix: str) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    with RepresentationReader(config, kafka) as reader:
        publisher.publish(1, records([representation("a", 1)]), manifest(1))
        reader.wait_until(1, WAIT_S)
        name, key, value, headers = records([representation("a", 2)])[0]
        newer = [(n, b"2" if n == "hw_schema" else c) for n, c in headers]
        publisher.publish(2, [(name, key, value, newer)], manifest(2))
        with pytest.raises(ReaderFailed, match="got hw_schema=2: upgrade this reader"):
            reader.wait_until(2, WAIT_S)
        with pytest.raises(ReaderFailed, match="upgrade"):
            reader.get("user", "a")
        assert reader.failure() is not None
    with pytest.raises(WireVersionError, match="got hw_schema=2"):
        RepresentationReader(config, kafka)
    publisher.close()


def test_foreign_bytes_are_counted_and_stop_nothing(kafka: str, prefix: str) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    foreign = Producer(producer_settings(config, kafka))
    foreign.produce(config.topic(USERS), key=b"x", value=b"hello")
    foreign.flush(60)
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    publisher.publish(1, records([representation("a", 1)]), manifest(1))
    with RepresentationReader(config, kafka) as reader:
        assert reader.version == 1 and reader.records_refused == 1
        assert reader.matrix("user")[0] == ["a"]
    publisher.close()


def test_missing_topics_are_named(kafka: str, prefix: str) -> None:
    with pytest.raises(TopicUnknown, match=f"{prefix}.representations.user"):
        RepresentationReader(stack_config(prefix), kafka)


def test_reader_and_publisher_survive_a_broker_restart(tmp_path: Path, prefix: str) -> None:
    config = stack_config(prefix)
    with EmbeddedBroker(tmp_path) as broker:
        ensure_topics(config, broker.bootstrap)
        publisher = Publisher(config, broker.bootstrap, f"{prefix}-publisher", timeout_seconds=4)
        with RepresentationReader(config, broker.bootstrap) as reader:
            _publish_until_there(publisher, 1, records([representation("a", 1)]))
            reader.wait_until(1, WAIT_S)
            broker.kill()
            with pytest.raises(TopicUnavailable):  # the outbox keeps version 2 for a retry
                publisher.publish(2, records([representation("a", 2)]), manifest(2))
            assert reader.get("user", "a") is not None  # what is held is served meanwhile
            broker.start()
            _publish_until_there(publisher, 2, records([representation("a", 2)]))
            assert reader.wait_until(2, WAIT_S)
            found = reader.get("user", "a")
            assert found is not None and found.version == 2
        publisher.close()


def test_a_broker_that_never_noted_the_transaction_ends_nothing(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still, then dies: what it was told last is in nobody's log. And dies once more
    before the publisher has begun anew."""
    config = stack_config(prefix)
    with EmbeddedBroker(tmp_path) as broker:
        ensure_topics(config, broker.bootstrap)
        publisher = Publisher(config, broker.bootstrap, f"{prefix}-publisher", timeout_seconds=2)
        _publish_until_there(publisher, 1, records([representation("a", 1)]))
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGSTOP)
        with pytest.raises(TopicUnavailable):
            publisher.publish(2, records([representation("a", 2)]), manifest(2))
        broker.kill()
        broker.start()

        def dying(settings: dict[str, Any]) -> Producer:
            broker.kill()
            return Producer(settings)

        monkeypatch.setattr(plain, "Producer", dying)
        deadline = time.monotonic() + WAIT_S
        while broker.pid is not None:
            assert time.monotonic() < deadline
            with pytest.raises(TopicUnavailable):
                publisher.publish(2, records([representation("a", 2)]), manifest(2))
        monkeypatch.undo()
        broker.start()
        _publish_until_there(publisher, 2, records([representation("a", 2)]))
        publisher.close()
        with RepresentationReader(config, broker.bootstrap, kinds=["user"]) as reader:
            assert reader.wait_until(2, WAIT_S)
            found = reader.get("user", "a")
            assert found is not None and found.version == 2


def test_version_cut_off_half_way_is_published_again(tmp_path: Path, prefix: str) -> None:
    config = stack_config(prefix)
    outbox = records(representation(f"u{i}", 2) for i in range(50))
    with EmbeddedBroker(tmp_path) as broker:
        ensure_topics(config, broker.bootstrap)
        publisher = Publisher(config, broker.bootstrap, f"{prefix}-publisher", timeout_seconds=3)
        _publish_until_there(publisher, 1, records([representation("u0", 1)]))

        def cut_off() -> Iterator[Record]:
            for number, record in enumerate(outbox):
                yield record
                if number == 25:
                    time.sleep(1)  # the first half is on the broker, its transaction open
                    broker.kill()

        with pytest.raises(TopicUnavailable):
            publisher.publish(2, cut_off(), manifest(2))
        with pytest.raises(TopicUnavailable):
            publisher.publish(2, outbox, manifest(2))
        broker.start()
        _publish_until_there(publisher, 2, outbox)
        publisher.close()
        with RepresentationReader(config, broker.bootstrap, kinds=["user"]) as reader:
            assert reader.version == 2
            assert reader.matrix("user")[1][:, 0].tolist() == [2.0] * 50


def _publish_until_there(publisher: Publisher, version: int, outbox: list[Record]) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            publisher.publish(version, outbox, manifest(version))
        except TopicUnavailable:
            assert time.monotonic() < deadline
        else:
            return


def reader_port(log: Path) -> int:
    """Of `python -m downstream`, from its own words; 0 until it is ready."""
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    ready = [json.loads(line) for line in lines if '"reader_ready"' in line]
    return int(ready[-1]["metrics_port"]) if ready else 0


def test_reader_process_serves_freshness_and_health(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    file = tmp_path / "c.toml"
    file.write_text(f'[kafka]\ntopic_prefix = "{prefix}"\npartitions = 2\n', encoding="utf-8")
    command = [sys.executable, "-m", "downstream", "--config", str(file)]
    command += ["--bootstrap", kafka]
    with (tmp_path / "out").open("w+b") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            _wait_for(lambda: reader_port(tmp_path / "out"))
            url = f"http://127.0.0.1:{reader_port(tmp_path / 'out')}"
            publisher = Publisher(config, kafka, f"{prefix}-publisher")
            publisher.publish(1, records([representation("a", 1)]), manifest(1))
            publisher.close()
            _wait_for(lambda: "user" in httpx.get(f"{url}/freshness", timeout=WAIT_S).json())
            metrics = httpx.get(f"{url}/metrics", timeout=WAIT_S).text
            assert 'headwater_representation_freshness_seconds_count{kind="user"} 1.0' in metrics
            assert "headwater_reader_version 1.0" in metrics
            assert 'headwater_reader_vectors{kind="user"} 1.0' in metrics
            assert httpx.get(f"{url}/healthz", timeout=WAIT_S).text == "ok\n"
        finally:
            process.terminate()
            assert process.wait(WAIT_S) == 0


def test_lag_counts_records_not_control_records(kafka: str, prefix: str) -> None:
    config, began = stack_config(prefix, partitions=1), time.time()
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    publisher.publish(1, records(representation(f"u{i}", 1) for i in range(5)), manifest(1))
    publisher.close()
    group = f"{prefix}.g"
    monitor = LagMonitor(
        config,
        kafka,
        group,
        REPRESENTATION_TOPICS,
        committed_offsets(config, kafka, group, REPRESENTATION_TOPICS),
        interval_seconds=0.1,
    )
    end = end_offsets(config, kafka, [USERS])[USERS, 0]
    assert end == 6  # five records and the commit's marker
    _wait_for(lambda: monitor.lags().get((USERS, 0), (0, 0.0))[0] == 6)
    assert 0 < monitor.lags()[USERS, 0][1] <= time.time() - began + 1
    committer = Consumer({"bootstrap.servers": kafka, "group.id": group})
    for offset, expected in ((3, 3), (5, 0)):
        at = TopicPartition(config.topic(USERS), 0, offset)
        committer.commit(offsets=[at], asynchronous=False)
        _wait_for(lambda expected=expected: monitor.lags()[USERS, 0][0] == expected)
    assert monitor.lags()[USERS, 0] == (0, 0.0)
    registry = CollectorRegistry()
    registry.register(monitor)
    labels = {"group": group, "topic": config.topic(USERS), "partition": "0"}
    assert registry.get_sample_value("headwater_consumer_lag_records", labels) == 0
    monitor.close()
    committer.close()

"""`python -m trainer` on a real broker: reads committed samples, publishes, stops, goes on."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from structlog.testing import capture_logs

from embedding_store.store import EmbeddingStore
from runtime.broker import EmbeddedBroker
from runtime.machine import _listening
from settings.config import Config
from settings.load import load_config
from tests.readable import await_readable
from tests.sample_stream import config_toml, make_samples
from topics.admin import ensure_topics
from topics.client import consumer_settings, producer_settings
from topics.join_header import JoinHeader
from topics.manifest import decode_manifest
from topics.names import MANIFEST, REPRESENTATION_TOPICS, SAMPLES, trainer_group
from topics.representation import decode
from topics.sample import Sample, encode_sample
from topics.scan import end_offsets, read_to_end
from trainer.errors import SourceGap
from trainer.source import KafkaSource
from trainer.step import row_layout

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def _config(folder: Path, prefix: str, **trainer: object) -> tuple[Path, Config]:
    path = folder / "c.toml"
    path.write_text(config_toml(prefix, **trainer), encoding="utf-8")
    return path, load_config(path, env={}).config


def _produce(kafka: str, config: Config, samples: list[Sample], *, commit: bool = True) -> None:
    """Samples in one transaction, as the join writes them; they can be read when it returns."""
    producer = Producer(
        producer_settings(config, kafka, transactional_id=f"{config.kafka.topic_prefix}-join")
    )
    producer.init_transactions(60)
    producer.begin_transaction()
    for sample in samples:
        joined_ms = int(time.time() * 1000)
        headers = [JoinHeader("impressions", 0, 0, -1, 0, 0, joined_ms).written()]
        producer.produce(
            config.topic(SAMPLES),
            key=sample.user_id.encode(),
            value=encode_sample(sample),
            headers=headers,
        )
    producer.flush(60)
    if commit:
        producer.commit_transaction(60)
    else:
        producer.abort_transaction(60)
    await_readable(config, kafka, [SAMPLES])


def _command(config_file: Path, kafka: str, store: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "trainer", "--config", str(config_file)),
        *("--bootstrap", kafka, "--store", str(store), *more),
    ]


def _manifests(kafka: str, config: Config) -> list[int]:
    found = []
    for _, message in read_to_end(config, kafka, [MANIFEST]):
        value = message.value()
        assert value is not None
        found.append(decode_manifest(value).version)
    return found


def _vectors(kafka: str, config: Config) -> dict[tuple[str, bytes], tuple[bytes | None, object]]:
    """Newest record per topic and key, whole."""
    newest: dict[tuple[str, bytes], tuple[bytes | None, object]] = {}
    await_readable(config, kafka, REPRESENTATION_TOPICS)
    for kind in ("user", "item", "cross"):
        topic = f"representations.{kind}"
        for _, message in read_to_end(config, kafka, [topic]):
            newest[topic, message.key() or b""] = (message.value(), message.headers())
    return newest


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_until_the_end_everything_is_learnt_and_published(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    config_file, config = _config(tmp_path, prefix)
    ensure_topics(config, kafka)
    samples = make_samples(500, correct=True)
    _produce(kafka, config, samples)
    _produce(kafka, config, make_samples(50, seed=5), commit=False)  # must never be seen
    done = subprocess.run(
        _command(config_file, kafka, tmp_path / "store", "--until-end"), timeout=200, check=False
    )
    assert done.returncode == 0
    await_readable(config, kafka, [MANIFEST])
    versions = _manifests(kafka, config)
    assert versions == list(range(1, len(versions) + 1)) and versions
    vectors = _vectors(kafka, config)
    users = {key.decode() for topic, key in vectors if topic.endswith(".user")}
    assert users == {s.user_id for s in samples}
    value, headers = vectors["representations.user", samples[0].user_id.encode()]
    vector = decode(samples[0].user_id.encode(), value, headers, kind="user")  # type: ignore[arg-type]
    assert vector.vector is not None and vector.vector.shape == (32,)
    with EmbeddingStore.open(
        tmp_path / "store", row_layout(config), cache_rows_max=4096, owner="test"
    ) as store:
        progress = msgspec.json.decode(store.get("trainer", b"progress") or b"")
        assert progress["samples"] == {
            state: sum(s.state == state for s in samples)
            for state in ("correction", "early", "final")
        }
        assert list(store.scan("outbox")) == []
    _tell_the_group(kafka, config, len(samples))


def _tell_the_group(kafka: str, config: Config, count: int) -> None:
    consumer = Consumer(consumer_settings(config, kafka, trainer_group(config)))
    at = consumer.committed([TopicPartition(config.topic(SAMPLES), 0)], timeout=60)[0]
    consumer.close()
    assert at.offset == count


def _metrics_missing(port: int) -> list[str]:
    """What a trainer that has published must tell, and the page at `port` does not."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
    names = (
        'headwater_stage_latency_seconds_count{stage="publish"}',
        'headwater_representation_freshness_seconds_count{kind="user"}',
        'headwater_progressive_ne{task="click",window="all"}',
        'headwater_store_rows{tier="hot"}',
        "headwater_last_event_timestamp_seconds",
    )
    return [name for name in names if name not in text]


def test_a_live_trainer_publishes_serves_metrics_and_stops_when_asked(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    config_file, config = _config(tmp_path, prefix, cut_by="time", commit_every="200ms")
    ensure_topics(config, kafka)
    command = _command(config_file, kafka, tmp_path / "store", "--metrics-port", "0")
    samples = make_samples(300, correct=True)
    with _running(command) as process:
        _produce(kafka, config, samples[:200])
        deadline = time.monotonic() + 200
        while not _manifests(kafka, config):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        [(_, port)] = _listening(process.pid)
        while missing := _metrics_missing(port):  # a version shows before it is counted
            assert process.poll() is None and time.monotonic() < deadline, missing
            time.sleep(0.1)
        second = subprocess.run(
            _command(config_file, kafka, tmp_path / "store"),
            capture_output=True,
            timeout=180,
            check=False,
        )
        assert second.returncode == 1
        assert f"owner=`headwater trainer` pid=`{process.pid}`" in second.stderr.decode()
        _produce(kafka, config, samples[200:])
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 0
    before = _manifests(kafka, config)
    done = subprocess.run(
        _command(config_file, kafka, tmp_path / "store", "--until-end"), timeout=200, check=False
    )
    assert done.returncode == 0
    assert _manifests(kafka, config)[: len(before)] == before


@pytest.mark.kill
def test_kill_9_leaves_the_same_rows_and_vectors(kafka: str, prefix: str, tmp_path: Path) -> None:
    samples = make_samples(1500, correct=True)
    results = []
    for name, kills in (("whole", 0), ("killed", 3)):
        (tmp_path / name).mkdir()
        config_file, config = _config(tmp_path / name, f"{prefix}-{name}", commit_every_steps=2)
        ensure_topics(config, kafka)
        _produce(kafka, config, samples)
        command = _command(config_file, kafka, tmp_path / name / "store", "--until-end")
        hit = 0
        for kill in range(kills):
            with _running(command) as process:
                deadline = time.monotonic() + 200
                while len(_manifests(kafka, config)) < 3 * (kill + 1):
                    # on a machine that is very busy, it may be at the end before it is looked at
                    if process.poll() is not None:
                        break
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                hit += process.poll() is None
                assert process.poll() in (None, 0)
        assert hit > 0 or not kills, "it was never killed"
        assert subprocess.run(command, timeout=200, check=False).returncode == 0
        with EmbeddingStore.open(
            tmp_path / name / "store", row_layout(config), cache_rows_max=4096, owner="test"
        ) as store:
            digest = store.content_digest()
        results.append((digest, _vectors(kafka, config)))
    assert results[0] == results[1]


@pytest.mark.kill
def test_a_broker_that_dies_and_comes_back_costs_nothing(prefix: str, tmp_path: Path) -> None:
    config_file, config = _config(tmp_path, prefix, cut_by="time", commit_every="200ms")
    samples = make_samples(300, correct=True)
    with EmbeddedBroker(tmp_path / "broker") as broker:
        ensure_topics(config, broker.bootstrap)
        command = _command(config_file, broker.bootstrap, tmp_path / "store")
        with _running(command) as process:
            _produce(broker.bootstrap, config, samples[:400])
            _await_learnt(process, broker.bootstrap, config, 400)
            broker.kill()
            time.sleep(3)
            broker.start()
            _produce(broker.bootstrap, config, samples[400:])
            _await_learnt(process, broker.bootstrap, config, len(samples) + 1)  # + a marker
            process.send_signal(signal.SIGTERM)
            assert process.wait(180) == 0
    with EmbeddingStore.open(
        tmp_path / "store", row_layout(config), cache_rows_max=4096, owner="test"
    ) as store:
        progress = msgspec.json.decode(store.get("trainer", b"progress") or b"")
        assert sum(progress["samples"].values()) == len(samples)


def _await_learnt(
    process: subprocess.Popen[bytes], bootstrap: str, config: Config, offset: int
) -> None:
    """Until the newest version has learnt everything below `offset`."""
    deadline = time.monotonic() + 200
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        values = [m.value() or b"" for _, m in read_to_end(config, bootstrap, [MANIFEST])]
        newest = [decode_manifest(value) for value in values]
        if newest and newest[-1].source_offsets[SAMPLES][0] >= offset:
            return
        time.sleep(0.3)


def test_samples_that_are_gone_are_not_skipped_silently(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    _, config = _config(tmp_path, prefix)
    ensure_topics(config, kafka)
    _produce(kafka, config, make_samples(5))
    with pytest.raises(SourceGap, match="continues at offset 999, the log holds 0 to 6"):
        KafkaSource(config, kafka, {SAMPLES: {0: 999}})
    source = KafkaSource(config, kafka, {SAMPLES: {0: 999}}, accept_gap=True, until_end=True)
    seen = 0
    while not source.at_end:
        seen += len(source.poll(100, 0.5))
    source.close()
    assert seen == 5 and end_offsets(config, kafka, [SAMPLES])[SAMPLES, 0] == 6


def test_an_outage_does_not_fill_the_log(kafka: str, prefix: str, tmp_path: Path) -> None:
    """librdkafka tells every attempt to reconnect, hundreds in a short outage."""
    _, config = _config(tmp_path, prefix)
    ensure_topics(config, kafka)
    source = KafkaSource(config, kafka, {})
    with capture_logs() as logged:
        for code in [KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN] * 100:
            source._note_error(KafkaError(code))
    source.close()
    assert [line["event"] for line in logged] == ["broker_trouble"] * 2

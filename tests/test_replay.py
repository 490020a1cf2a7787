"""History through the same join and trainer into a shadow, what differs, and readers that move."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from downstream.reader import RepresentationReader
from runtime.cli import app
from runtime.comparing import compare
from runtime.history import TopicHistory
from runtime.replaying import ReplayExists, prepare, shadow_prefix
from runtime.shadow import delete_shadow, existing_topics, shadow_config
from settings.config import Config
from tests.publishing import manifest, records, representation, stack_config
from tests.readable import Publisher
from tests.test_reader import reader_port
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.pointer import read_pointer, write_pointer
from topics.sample import decode_sample
from topics.scan import read_to_end

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
T = 1_700_000_000_000
HOUR = 3_600_000


def _publish(config: Config, kafka: str, version: int, *ids: str) -> None:
    publisher = Publisher(config, kafka, f"{config.kafka.topic_prefix}-publisher")
    publisher.publish(
        version, records(representation(name, version) for name in ids), manifest(version)
    )
    publisher.close()


def _within_a_second(done: Callable[[], bool]) -> None:
    """The promise is a second; a machine that is very busy is given more, and the time is shown."""
    started = time.monotonic()
    while not done():
        assert time.monotonic() < started + 120
        time.sleep(0.01)
    print(f"followed after {time.monotonic() - started:.3f} s")  # noqa: T201


def test_readers_in_every_process_follow_a_switch_and_back(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    live = stack_config(prefix)
    shadow = stack_config(f"{prefix}-next")
    for config in (live, shadow):
        ensure_topics(config, kafka)
    _publish(live, kafka, 7, "a", "b")
    _publish(shadow, kafka, 3, "a")
    file = tmp_path / "c.toml"
    file.write_text(f'[kafka]\ntopic_prefix = "{prefix}"\n', encoding="utf-8")
    command = [sys.executable, "-m", "downstream", "--config", str(file)]
    command += ["--bootstrap", kafka]
    said = tmp_path / "said"

    def other_serves(version: int) -> bool:
        if not (port := reader_port(said)):
            return False
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
        return f"headwater_reader_version {version}.0" in text

    with said.open("wb") as out:
        process = subprocess.Popen(command, stderr=out)
    try:
        with RepresentationReader(live, kafka) as reader:
            deadline = time.monotonic() + 120
            while not other_serves(7):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            for target, version, ids in ((shadow, 3, ["a"]), (live, 7, ["a", "b"])):
                write_pointer(live, kafka, target.kafka.topic_prefix)
                _within_a_second(lambda version=version: reader.version == version)
                _within_a_second(lambda version=version: other_serves(version))
                assert reader.follows == target.kafka.topic_prefix
                assert sorted(reader.matrix("user")[0]) == ids
            write_pointer(live, kafka, shadow.kafka.topic_prefix)
            _within_a_second(lambda: reader.version == 3)
            _publish(shadow, kafka, 4, "z")  # it tails what it follows
            assert reader.wait_until(4, 120) and reader.get("user", "z") is not None
        with RepresentationReader(live, kafka) as started_later:
            assert (started_later.follows, started_later.version) == (f"{prefix}-next", 4)
    finally:
        process.terminate()
        process.wait(120)


def test_a_pointer_to_nothing_changes_nothing(kafka: str, prefix: str) -> None:
    live = stack_config(prefix)
    ensure_topics(live, kafka)
    _publish(live, kafka, 7, "a")
    with RepresentationReader(live, kafka) as reader:
        write_pointer(live, kafka, f"{prefix}-nowhere")
        time.sleep(1)
        assert reader.version == 7 and reader.follows == prefix
        _publish(live, kafka, 8, "a")
        assert reader.wait_until(8, 120)


def test_switch_refuses_what_has_published_nothing(kafka: str, prefix: str, tmp_path: Path) -> None:
    live = stack_config(prefix)
    ensure_topics(live, kafka)
    prepare(live, kafka, tmp_path / "replays" / "next", "next", live=False, replace=False)
    file = tmp_path / "c.toml"
    file.write_text(f'[kafka]\ntopic_prefix = "{prefix}"\n', encoding="utf-8")
    options = ["--bootstrap", kafka, "--config", str(file), "--dir", str(tmp_path)]
    found = CliRunner().invoke(app, ["switch", "next", *options])
    assert found.exit_code == 1 and "has published nothing" in found.output
    assert read_pointer(live, kafka) is None
    with pytest.raises(ReplayExists, match="choose another --into"):
        prepare(live, kafka, tmp_path / "replays" / "next", "next", live=False, replace=False)


def test_history_from_topics_keeps_every_byte(kafka: str, prefix: str, tmp_path: Path) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    producer = Producer(producer_settings(config, kafka))
    sent = [
        ("conversions", b'{"event_ms":\n 5}'),
        ("impressions", b'{"event_ms": 2}'),
        ("impressions", b"no event"),
        ("impressions", b'{"event_ms": 5}'),
    ]
    for stream, value in sent:
        producer.produce(config.topic(stream), value, b"k")
    assert producer.flush(120) == 0
    found = list(TopicHistory(config, kafka, tmp_path).lines(arrival_order=False))
    assert found == [sent[2], sent[1], sent[3], sent[0]]


def _history() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two hours; each impression converts 10 s later."""
    impressions, conversions = [], []
    for n in range(120):
        pair = {"user_id": f"u{n % 7}", "item_id": f"a{n}"}
        at_ms = T + n * 60_000
        own = {"impression_id": f"i{n}", "event_ms": at_ms, "domain": "feed"}
        impressions.append({**pair, **own, "features": {"age": float(n), "os": None}})
        done = {"conversion_id": f"c{n}", "impression_id": None, "event_ms": at_ms + 10_000}
        conversions.append({**pair, **done, "kind": "buy", "value": 1.0})
    return impressions, conversions


@pytest.mark.flink
def test_replay_of_parquet_within_bounds_trains_and_is_switched_to(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """The second hour of two, from Parquet; then a copy of its samples with one label turned."""
    impressions, conversions = _history()
    for name, events in (("impressions", impressions), ("conversions", conversions)):
        pl.DataFrame(events).write_parquet(tmp_path / f"{name}.parquet")
    file = tmp_path / "c.toml"
    file.write_text(
        f'[kafka]\ntopic_prefix = "{prefix}"\n[kinds.buy]\nwindow = "1min"\n'
        '[slots.age]\ntype = "numeric"\nside = "user"\n',
        encoding="utf-8",
    )
    options = ["--bootstrap", kafka, "--config", str(file), "--dir", str(tmp_path)]
    arguments = ["replay", "--into", "next", "--train", "--json", *options]
    arguments += ["--from", str(T + HOUR), "--to", str(T + 2 * HOUR)]
    for name in ("impressions", "conversions"):
        arguments += [f"--{name}", str(tmp_path / f"{name}.parquet")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["events"] == {"impressions": 60, "conversions": 60}
    assert report["balanced"] and report["trained"]
    assert report["audit"]["conversions"]["attributed"] == 60

    live = Config.model_validate({"kafka": {"topic_prefix": prefix}})
    shadow = shadow_config(live, shadow_prefix(live, "next"), reads_live=False, bounded=False)
    for _, message in read_to_end(shadow, kafka, ["samples"]):
        sample = decode_sample(message.value() or b"")
        assert "os" not in sample.features  # a null slot of Parquet is a missing one
    assert CliRunner().invoke(app, ["switch", "next", *options]).exit_code == 0
    pointer = read_pointer(live, kafka)
    assert pointer is not None and pointer.topic_prefix == f"{prefix}-next"


def test_compare_names_what_differs_and_first(kafka: str, prefix: str) -> None:
    a, b = stack_config(prefix), stack_config(f"{prefix}-turned")
    for config in (a, b):
        ensure_topics(config, kafka)
        producer = Producer(producer_settings(config, kafka))
        for n in range(20):
            is_turned = config is b and n == 7
            sample = {
                "impression_id": f"i{n}",
                "event_ms": T + n,
                "features": {"age": n},
                "produced_ms": T,
                "labels": {"buy": 0 if is_turned else 1},
                "delays_ms": {"buy": 10 if n != 3 or config is a else 11},
                "values": {},
                "counts": {},
                "keep_rate": 1.0,
                "kept": True,
                "state": "final",
                "elapsed_ms": 100,
                "revision": 0,
            }
            if config is a or n != 8:
                producer.produce(config.topic("samples"), json.dumps(sample).encode(), b"k")
        assert producer.flush(120) == 0
    _publish(a, kafka, 1, "u0", "u1")
    _publish(b, kafka, 1, "u0")
    assert compare(a, a, kafka).identical
    found = compare(a, b, kafka)
    assert (found.samples.both, found.samples.only_a, found.samples.only_b) == (19, 1, 0)
    assert found.samples.labels == {"buy": 1} and found.samples.identical == 17
    assert found.samples.first == {"only_a": ["i8"], "labels": ["i7"], "delays": ["i3"]}
    users = found.representations["user"]
    assert (users.both, users.identical, users.only_a) == (1, 1, 1) and users.cosine_min == 1.0
    assert not found.identical
    delete_shadow(b, kafka)
    ends = time.monotonic() + 60
    while left := existing_topics(b, kafka):  # the broker's own list comes a moment later
        assert time.monotonic() < ends, left
        time.sleep(0.05)

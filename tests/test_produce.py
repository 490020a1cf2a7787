"""`produce` and `consume` against the real broker: bytes as they are, keys, limits, pace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli import app
from runtime.event_files import merged_lines
from runtime.producing import EventProducer, Pace, event_time_ms, pair_key
from settings.config import Config, EventsConfig, KafkaConfig
from topics.admin import ensure_topics
from topics.scan import read_to_end

runner = CliRunner()
GOOD = b'{"impression_id":"i","event_ms":5,"user_id":"u","item_id":"m","domain":"d","features":{}}'


def test_the_key_is_the_pair_and_null_where_it_cannot_be_read() -> None:
    assert pair_key(GOOD) == b"u\x1fm"
    for broken in (b"{", b"[]", b"\xff", b'{"user_id":1,"item_id":"m"}', b'{"user_id":"u"}'):
        assert pair_key(broken) is None
    deep = b'{"user_id":"u","item_id":"m","more":' + b"[" * 100_000
    long = b'{"user_id":"' + b"u" * 40_000 + b'","item_id":"m"}'
    assert (pair_key(deep), event_time_ms(deep), pair_key(long)) == (None, None, None)
    assert event_time_ms(GOOD) == 5
    assert event_time_ms(b'{"event_ms":NaN}') is None


def test_pace_by_rate_and_by_event_time() -> None:
    clock = [0.0]
    by_rate = Pace(per_second=10, clock=lambda: clock[0])
    assert [by_rate.wait_s(None) for _ in range(3)] == pytest.approx([0.0, 0.1, 0.2])
    by_time = Pace(speedup=2, clock=lambda: clock[0])
    assert by_time.wait_s(1_000) == 0
    assert by_time.wait_s(5_000) == pytest.approx(2.0)
    clock[0] = 1.5
    assert by_time.wait_s(5_000) == pytest.approx(0.5)
    assert by_time.wait_s(None) == 0  # with its neighbour
    assert by_time.wait_s(4_070_908_800_000) == 0  # nobody waits for the year 2099
    assert Pace().wait_s(9) == 0


def _event(event_ms: int | str, name: str) -> bytes:
    return b'{"event_ms":%s,"name":"%s"}' % (str(event_ms).encode(), name.encode())


def test_files_merge_by_time_and_bad_lines_stay_with_their_neighbours(tmp_path: Path) -> None:
    impressions, conversions = tmp_path / "i", tmp_path / "c"
    lines = [b"broken first", _event(30, "late"), b"broken", _event(10, "early"), b"", b"{"]
    impressions.write_bytes(b"\n".join(lines) + b"\n")
    conversions.write_bytes(_event(10, "tie") + b"\r\n" + _event(20, "mid") + b"\n" + b"last")
    merged = list(merged_lines(impressions, conversions, arrival_order=False))
    assert [line for _, _, line in merged] == [
        _event(10, "early"),
        b"{",
        _event(10, "tie"),
        _event(20, "mid"),
        b"last",
        b"broken first",
        _event(30, "late"),
        b"broken",
    ]
    assert merged[0][:2] == ("impressions", 4)
    kept = [
        line
        for s, _, line in merged_lines(impressions, conversions, arrival_order=True)
        if s == "impressions"
    ]
    assert kept == [line for line in lines if line]


def test_empty_files_merge_to_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert list(merged_lines(empty, empty, arrival_order=False)) == []


@pytest.fixture
def config_file(tmp_path: Path, prefix: str, kafka: str) -> Path:
    config = Config(
        kafka=KafkaConfig(topic_prefix=prefix, partitions=2), events=EventsConfig(bytes_max=2_000)
    )
    ensure_topics(config, kafka)
    file = tmp_path / "config.toml"
    file.write_text(
        f"[kafka]\ntopic_prefix = '{prefix}'\npartitions = 2\nbootstrap = '{kafka}'\n"
        "[events]\nbytes_max = 2000\n"
    )
    return file


@pytest.mark.kafka
@pytest.mark.slow
def test_lines_arrive_as_they_are_and_oversized_ones_are_refused_by_number(
    tmp_path: Path, config_file: Path
) -> None:
    lines = [GOOD, b"not json \xff", b'{"pad":"' + b"x" * 3_000 + b'"}', b" " + GOOD + b" "]
    file = tmp_path / "impressions.jsonl"
    file.write_bytes(b"\n".join([*lines[:2], b"", *lines[2:]]) + b"\r\n")
    sent = runner.invoke(app, ["produce", "impressions", str(file), "--config", str(config_file)])
    assert sent.exit_code == 1
    assert "line 4: refused, 3010 bytes are over events.bytes_max = 2000" in sent.stderr
    assert "3 impressions sent, 1 refused, 1 blank lines skipped" in sent.stderr
    read = runner.invoke(
        app, ["consume", "impressions", "--config", str(config_file), "--to-end", "--jsonl"]
    )
    got = sorted(read.stdout_bytes.splitlines())
    assert got == sorted([lines[0], lines[1], lines[3]])


@pytest.mark.kafka
@pytest.mark.slow
def test_more_lines_than_the_clients_queue_holds_all_arrive(config_file: Path, kafka: str) -> None:
    config = Config(
        kafka=KafkaConfig(
            topic_prefix=str(config_file.read_text().split("'")[1]),
            partitions=2,
            extra={"queue.buffering.max.messages": 100},
        )
    )
    producer = EventProducer(config, kafka)
    for number in range(5_000):
        user = f"u{number % 50}"
        line = {"user_id": user, "item_id": "m", "n": number}
        assert producer.send("conversions", json.dumps(line).encode())
    producer.flush()
    assert producer.acknowledged["conversions"] == 5_000
    newest: dict[str, int] = {}
    seen = 0
    plain = config.model_copy(update={"kafka": config.kafka.model_copy(update={"extra": {}})})
    for _, message in read_to_end(plain, kafka, ["conversions"]):
        value = json.loads(message.value() or b"")
        assert newest.get(value["user_id"], -1) < value["n"]  # order kept within a pair
        newest[value["user_id"]] = value["n"]
        seen += 1
    assert seen == 5_000


@pytest.mark.kafka
@pytest.mark.slow
def test_a_broker_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "impressions.jsonl"
    file.write_bytes(GOOD + b"\n")
    result = runner.invoke(app, ["produce", "impressions", str(file), "--bootstrap", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "no Kafka broker answers at 127.0.0.1:1" in str(result.exception)

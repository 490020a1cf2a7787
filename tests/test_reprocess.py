"""Events put aside are sent through again: each once, only if they decode, and the audit knows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from runtime.cli import app
from runtime.config_file import write_config
from runtime.reprocessing import reprocess_late
from settings.config import Config
from stream.asides import read_marks, send_once
from stream.reprocess import reprocess_undecodable
from tests.readable import await_readable
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.event import event_key
from topics.join_header import JoinHeader
from topics.names import CONVERSIONS, IMPRESSIONS, SAMPLES
from topics.sample import decode_sample
from topics.scan import read_to_end

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
T = 1_700_000_000_000
Headers = dict[str, str]


def _config(prefix: str, **kinds: str) -> Config:
    return Config.model_validate(
        {
            "kafka": {"topic_prefix": prefix, "partitions": 2},
            "kinds": {name: {"window": window} for name, window in kinds.items()},
            "join": {"policy": "correct", "lateness": "100ms"},
        }
    )


def _impression(name: str, event_ms: int, user: str) -> dict[str, Any]:
    own = {"impression_id": name, "event_ms": event_ms, "user_id": user, "item_id": "a"}
    return {**own, "domain": "feed", "features": {"age": 3.50}}


def _conversion(
    name: str, named: str | None, event_ms: int, kind: str, user: str
) -> dict[str, Any]:
    own = {"conversion_id": name, "impression_id": named, "event_ms": event_ms, "kind": kind}
    return {**own, "user_id": user, "item_id": "a", "value": 2.5}


class _Topics:
    """Writes what producers and the join would have written."""

    def __init__(self, config: Config, kafka: str) -> None:
        ensure_topics(config, kafka)
        self._config = config
        self._producer = Producer(producer_settings(config, kafka))

    def send(self, name: str, event: Any, headers: Headers | None = None) -> tuple[int, int]:
        """(partition, offset) of the record."""
        raw = event if isinstance(event, bytes) else json.dumps(event).encode()
        key = None if isinstance(event, bytes) else event_key(event["user_id"], event["item_id"])
        found: list[tuple[int, int]] = []

        def written(error: Any, message: Any) -> None:
            assert error is None, error
            found.append((message.partition(), message.offset()))

        self._producer.produce(
            self._config.topic(name), raw, key, headers=headers or {}, on_delivery=written
        )
        assert self._producer.flush(120) == 0
        return found[0]

    def put_aside(
        self, topic: str, stream: str, event: Any, reason: str, watermark_ms: int = T
    ) -> tuple[str, int, int]:
        """The event on its stream and, as the join writes it, on `topic`; its source."""
        source = (stream, *self.send(stream, event))
        self.send(topic, event, _about(source, watermark_ms) | {"hw_reason": reason})
        return source


def _about(source: tuple[str, int, int], watermark_ms: int) -> Headers:
    now_ms = int(time.time() * 1000)
    name, value = JoinHeader(*source, watermark_ms, 0, T, now_ms).written()
    return {name: value.decode("ascii")}


def _records(config: Config, kafka: str, name: str) -> list[tuple[dict[str, str], bytes]]:
    found = []
    await_readable(config, kafka, [name])
    for _, message in read_to_end(config, kafka, [name]):
        headers = {key: bytes(value).decode() for key, value in message.headers() or []}
        found.append((headers, message.value() or b""))
    return found


def _sent_again(config: Config, kafka: str, mark: str | None = None) -> list[bytes]:
    """Conversions that a reprocessing sent; two partitions are read in no order of their own."""
    return [
        value
        for headers, value in _records(config, kafka, CONVERSIONS)
        if "hw_reprocessed" in headers and mark in (None, headers["hw_reprocessed"])
    ]


def test_undecodable_events_go_in_again_once_and_only_if_they_decode(
    kafka: str, prefix: str
) -> None:
    config = _config(prefix, buy="1000ms")
    topics = _Topics(config, kafka)
    rent = _conversion("c1", None, T + 300, "rent", "u1")
    reason = "kind: expected one of buy, got rent"
    source = topics.put_aside("undecodable", CONVERSIONS, rent, reason)
    topics.put_aside("undecodable", IMPRESSIONS, b"{junk", "json: expected an object")
    ahead = _impression("i9", T + 86_400_000 * 9, "u2")
    topics.put_aside("undecodable", IMPRESSIONS, ahead, "event_ms: expected at most ...")
    cut = _conversion("c9", None, T + 300, "buy", "u3")  # what is left of it decodes
    topics.put_aside("undecodable", CONVERSIONS, cut, "size: expected at most ...")

    before_the_fix = reprocess_undecodable(config, kafka)
    assert (before_the_fix.waiting, before_the_fix.sent) == (4, 0)
    assert any("one of ['buy'], got 'rent'" in one.reason for one in before_the_fix.refused)
    assert any("still from the future" in one.reason for one in before_the_fix.refused)
    assert any("only its first bytes" in one.reason for one in before_the_fix.refused)

    fixed = _config(prefix, buy="1000ms", rent="500ms")
    tried = reprocess_undecodable(fixed, kafka, dry_run=True)
    assert (tried.sent, tried.refused_total, tried.dry_run) == (1, 3, True)
    assert len(_records(fixed, kafka, CONVERSIONS)) == 2
    assert reprocess_undecodable(fixed, kafka).sent == 1
    again = reprocess_undecodable(fixed, kafka)
    assert (again.waiting, again.already, again.sent) == (3, 1, 0)
    (value,) = _sent_again(fixed, kafka, "undecodable/" + "/".join(map(str, source)))
    assert json.loads(value) == rent
    assert read_marks(fixed, kafka) == {source}


def test_bytes_that_a_function_mends_go_in_again(kafka: str, prefix: str, tmp_path: Path) -> None:
    """From the command line: a producer wrote seconds, and one line that nobody can read."""
    config = _config(prefix, buy="1000ms")
    topics = _Topics(config, kafka)
    seconds = _conversion("c1", None, T // 1000, "Buy", "u1")
    topics.put_aside("undecodable", CONVERSIONS, seconds, "kind: ...")
    topics.put_aside("undecodable", IMPRESSIONS, b"{junk", "json: expected an object")
    topics.put_aside("undecodable", IMPRESSIONS, b"", "json: expected an object")
    write_config(config, tmp_path / "c.toml", comment="kinds in small letters")
    (tmp_path / "fix.py").write_text(
        "import json\n"
        "def mend(stream, value):\n"
        "    if not value:\n"
        "        return None\n"
        "    event = json.loads(value)\n"
        "    event |= {'kind': event['kind'].lower(), 'event_ms': event['event_ms'] * 1000}\n"
        "    return json.dumps(event).encode()\n",
        encoding="utf-8",
    )
    options = ["--bootstrap", kafka, "--config", str(tmp_path / "c.toml"), "--json"]
    fix = ["--map", f"{tmp_path / 'fix.py'}:mend"]
    ran = CliRunner().invoke(app, ["reprocess", "undecodable", *fix, *options])
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert (report["sent"], report["refused_total"]) == (1, 2)
    told = " ".join(one["reason"] for one in report["refused"])
    assert "JSONDecodeError" in told and "left where it is" in told
    (value,) = _sent_again(config, kafka)
    assert json.loads(value) == {**seconds, "kind": "buy", "event_ms": T // 1000 * 1000}
    for wrong in (["late", *fix], ["undecodable", "--map", "fix.py:mend"]):
        assert CliRunner().invoke(app, ["reprocess", *wrong, *options]).exit_code == 2


def test_a_run_cut_off_inside_its_transaction_sends_nothing(kafka: str, prefix: str) -> None:
    config = _config(prefix, buy="1000ms")
    topics = _Topics(config, kafka)
    buy = _conversion("c1", None, T + 300, "buy", "u1")
    topics.put_aside("undecodable", CONVERSIONS, buy, "kind: ...")
    cut_off = Producer(producer_settings(config, kafka, transactional_id=f"{prefix}-reprocess"))
    cut_off.init_transactions(60)
    cut_off.begin_transaction()
    cut_off.produce(config.topic(CONVERSIONS), b"{}", b"k")
    cut_off.produce(config.topic("reprocessed"), b"{}", b"conversions/0/0")
    cut_off.flush(30)  # written, never committed
    assert reprocess_undecodable(config, kafka).sent == 1
    assert len(_records(config, kafka, CONVERSIONS)) == 2
    assert len(read_marks(config, kafka)) == 1


def test_two_runs_at_once_send_each_event_once(kafka: str, prefix: str) -> None:
    """Both have read the same events; the marks are read again under the transactional id."""
    config = _config(prefix, buy="1000ms")
    topics = _Topics(config, kafka)
    buy = _conversion("c1", None, T + 300, "buy", "u1")
    topics.put_aside("undecodable", CONVERSIONS, buy, "kind: ...")
    from stream.asides import read_asides

    [aside], _ = read_asides(config, kafka, "undecodable")
    record = (CONVERSIONS, b"k", aside.value, [])
    assert send_once(config, kafka, [(aside, [record])]) == (1, 1)
    assert send_once(config, kafka, [(aside, [record])]) == (0, 0)


@pytest.mark.flink
def test_late_events_are_joined_with_their_past(kafka: str, prefix: str) -> None:
    config = _config(prefix, buy="1000ms", like="1000ms")
    topics = _Topics(config, kafka)
    # i1 was sampled without labels; its `buy` came late. l1 came late; its `like` was an orphan.
    first = _impression("i1", T, "u1")
    source = (IMPRESSIONS, *topics.send(IMPRESSIONS, first))
    untold = {"produced_ms": T, "labels": {"buy": 0, "like": 0}, "delays_ms": {}, "values": {}}
    for revision, (state, elapsed_ms) in enumerate((("early", 0), ("final", 1000))):
        added = {"keep_rate": 1.0, "state": state, "elapsed_ms": elapsed_ms, "revision": revision}
        topics.send(SAMPLES, {**first, **untold, **added}, _about(source, T + 1500))
    bought = _conversion("c1", "i1", T + 300, "buy", "u1")
    topics.put_aside("late", CONVERSIONS, bought, "event_ms: ...", T + 1500)
    liked = _conversion("c2", None, T + 600, "like", "u2")
    topics.put_aside("orphans", CONVERSIONS, liked, "impression: ...", T + 1500)
    late = _impression("l1", T + 500, "u2")
    late_source = topics.put_aside("late", IMPRESSIONS, late, "event_ms: ...", T + 1500)
    nobodys = _conversion("c3", None, T + 600, "buy", "u9")
    topics.put_aside("late", CONVERSIONS, nobodys, "event_ms: ...", T + 1500)

    report = reprocess_late(config, kafka)
    assert (report.waiting, report.sent, report.refused_total) == (3, 3, 0)
    appended = [
        (headers, decode_sample(value))
        for headers, value in _records(config, kafka, SAMPLES)
        if "hw_reprocessed" in headers
    ]
    told = {(s.impression_id, s.state): (s.labels, s.delays_ms, s.revision) for _, s in appended}
    assert told["i1", "correction"] == ({"buy": 1}, {"buy": 300}, 2)
    assert told["l1", "final"][:2] == ({"buy": 0, "like": 1}, {"like": 100})
    assert set(told) == {
        ("i1", "correction"),
        ("l1", "early"),
        ("l1", "correction"),
        ("l1", "final"),
    }
    assert report.records == len(appended) == 4
    [final] = [headers for headers, s in appended if s.state == "final"]
    said = JoinHeader.read([(name, value.encode()) for name, value in final.items()])
    assert said.source[1:] == late_source[1:]
    assert said.watermark_ms == T + 1500
    again = reprocess_late(config, kafka)
    assert (again.waiting, again.already, again.sent) == (0, 3, 0)

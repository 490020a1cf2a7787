"""The audit on topics made by hand: right ones balance, each planted defect is named."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from settings.config import Config, EventsConfig, JoinConfig, KafkaConfig, KindConfig
from stream.audit import AuditReport, audit
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.event import event_key
from topics.join_header import JoinHeader
from topics.names import join_group

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
T = 1_700_000_000_000
DAY = 86_400_000
Output = dict[str, Any]


def _config(prefix: str) -> Config:
    return Config(
        kafka=KafkaConfig(topic_prefix=prefix, partitions=1),
        kinds={
            "buy": KindConfig.model_validate({"window": "1000ms"}),
            "like": KindConfig.model_validate({"window": "500ms"}),
        },
        join=JoinConfig.model_validate({"policy": "correct", "lateness": "100ms"}),
        events=EventsConfig.model_validate({"future_bound": "1d"}),
    )


def _impression(name: str, event_ms: int, user: str = "u1", item: str = "a1") -> dict[str, Any]:
    return {
        "impression_id": name,
        "event_ms": event_ms,
        "user_id": user,
        "item_id": item,
        "domain": "feed",
        "features": {"age": 3.5, "seen": [{"item_id": "a0", "event_ms": 1}]},
    }


def _conversion(
    name: str, named: str | None, event_ms: int, kind: str, value: float | None = None, **pair: str
) -> dict[str, Any]:
    return {
        "conversion_id": name,
        "impression_id": named,
        "event_ms": event_ms,
        "user_id": pair.get("user", "u1"),
        "item_id": pair.get("item", "a1"),
        "kind": kind,
        "value": value,
    }


IMPRESSIONS: list[Any] = [
    _impression("i1", T),
    _impression("i2", T + 200),
    _impression("i1", T),  # 2 duplicate
    b"{junk",  # 3 undecodable
    _impression("i3", T - 5000, user="u2"),  # 4 late
    _impression("i4", T + 400 * DAY),  # 5 from the future
    _impression("i5", T + 5000, user="u3"),  # 6 pending
]
CONVERSIONS: list[Any] = [
    _conversion("c1", "i1", T + 300, "buy", 9.5),
    _conversion("c2", None, T + 400, "like"),  # last touch: i2
    _conversion("c3", "i1", T + 900, "like"),  # 2 orphan: outside the window
    _conversion("c1", "i1", T + 300, "buy", 9.5),  # 3 duplicate
    _conversion("c4", None, T + 100, "buy", user="u9"),  # 4 late
    _conversion("c7", None, T + 100, "rent"),  # 5 undecodable
    _conversion("c5", None, T + 2500, "buy"),  # 6 pending
    _conversion("c6", "i1", T + 100, "buy"),  # 7 attributed; earlier than c1
]
# Wall clock, as real producers stamp: retention deletes records by it within minutes.
PRODUCED = {
    "impressions": int(time.time() * 1000) - 60_000,
    "conversions": int(time.time() * 1000) - 30_000,
}


def _bytes(event: Any) -> bytes:
    return event if isinstance(event, bytes) else json.dumps(event).encode()


def _output(topic: str, stream: str, offset: int, watermark_ms: int, **more: Any) -> Output:
    events = IMPRESSIONS if stream == "impressions" else CONVERSIONS
    return {
        "topic": topic,
        "stream": stream,
        "offset": offset,
        "watermark_ms": watermark_ms,
        "event_ms": 0,
        "reason": "because" if topic in ("late", "orphans", "duplicates", "undecodable") else None,
        "value": _bytes(events[offset]),
        **more,
    }


def _sample(
    offset: int,
    state: str,
    revision: int,
    watermark_ms: int,
    newest: tuple[int, int],
    **fields: Any,
) -> Output:
    event_ms, produced_ms = newest
    added = {
        "produced_ms": produced_ms,
        "labels": {"buy": 0, "like": 0},
        "delays_ms": {},
        "values": {},
        "counts": dict.fromkeys(fields.get("delays_ms", {}), 1),
        "keep_rate": 1.0,
        "kept": True,
        "delayed": dict.fromkeys(fields.get("delays_ms", {}), 1),
        "state": state,
        "elapsed_ms": 1000 if state == "final" else 0,
        "revision": revision,
        **fields,
    }
    value = _bytes({**IMPRESSIONS[offset], **added})
    return _output("samples", "impressions", offset, watermark_ms, value=value, event_ms=event_ms)


def _attribution(offset: int, impression_id: str, watermark_ms: int) -> Output:
    event = CONVERSIONS[offset]
    value = {
        "conversion_id": event["conversion_id"],
        "impression_id": impression_id,
        "kind": event["kind"],
    }
    return _output("attributions", "conversions", offset, watermark_ms, value=_bytes(value))


def _right() -> list[Output]:
    i1, i2 = PRODUCED["impressions"], PRODUCED["impressions"] + 1
    c1, c2 = PRODUCED["conversions"], PRODUCED["conversions"] + 1
    return [
        _sample(0, "early", 0, -1, (T, i1)),
        _sample(1, "early", 0, -1, (T + 200, i2)),
        _output("duplicates", "impressions", 2, T - 1),
        _output("undecodable", "impressions", 3, T - 1),
        _output("late", "impressions", 4, T - 1),
        _output("undecodable", "impressions", 5, T - 1),
        _attribution(0, "i1", T + 100),
        _sample(
            0, "correction", 1, T + 100, (T + 300, c1), elapsed_ms=300,
            labels={"buy": 1}, delays_ms={"buy": 300}, values={"buy": 9.5},
        ),
        _attribution(7, "i1", T + 150),
        _output("duplicates", "conversions", 3, T + 200),
        _output("undecodable", "conversions", 5, T + 200),
        _output("late", "conversions", 4, T + 500),
        _attribution(1, "i2", T + 500),
        _sample(
            1, "correction", 1, T + 500, (T + 400, c2), elapsed_ms=200,
            labels={"like": 1}, delays_ms={"like": 200},
        ),
        _output("orphans", "conversions", 2, T + 1500),
        _sample(
            0, "final", 2, T + 1500, (T + 300, c1),
            labels={"buy": 1, "like": 0}, delays_ms={"buy": 100}, counts={"buy": 2},
        ),
        _sample(
            1, "final", 2, T + 1500, (T + 400, c2),
            labels={"buy": 0, "like": 1}, delays_ms={"like": 200},
        ),
    ]  # fmt: skip


def _produce(
    config: Config,
    kafka: str,
    outputs: list[Output],
    *,
    impressions: list[Any] = IMPRESSIONS,
    conversions: list[Any] = CONVERSIONS,
) -> None:
    producer = Producer(producer_settings(config, kafka))
    for stream, events in (("impressions", impressions), ("conversions", conversions)):
        for offset, event in enumerate(events):
            pair = event if isinstance(event, dict) else {"user_id": "", "item_id": ""}
            producer.produce(
                config.topic(stream),
                key=event_key(pair["user_id"], pair["item_id"]),
                value=_bytes(event),
                timestamp=PRODUCED[stream] + offset,
            )
    for output in outputs:
        said = JoinHeader(
            output["stream"],
            partition=0,
            offset=output["offset"],
            watermark_ms=output["watermark_ms"],
            event_ms=output["event_ms"],
            produced_ms=0,
            joined_ms=T + 30_000,
        )
        headers = dict([said.written()])
        if output["reason"]:
            headers["hw_reason"] = output["reason"].encode()
        producer.produce(
            config.topic(output["topic"]), key=b"k", value=output["value"], headers=headers
        )
    assert producer.flush(120) == 0


def _audit(kafka: str, prefix: str, outputs: list[Output]) -> AuditReport:
    config = _config(prefix)
    ensure_topics(config, kafka)
    _produce(config, kafka, outputs)
    return audit(config, kafka, bounded=True, settle_seconds=0)


def test_right_topics_balance_event_by_event(kafka: str, prefix: str) -> None:
    report = _audit(kafka, prefix, _right())
    assert report.differences == [] and report.unreadable == []
    assert report.balanced
    counts = report.impressions
    assert (counts.in_, counts.sampled, counts.pending) == (7, 2, 1)
    assert (counts.duplicate, counts.late, counts.undecodable) == (1, 1, 2)
    assert (report.conversions.in_, report.conversions.attributed) == (8, 3)
    assert (report.conversions.orphan, report.conversions.pending) == (1, 1)
    assert (report.conversions.late, report.conversions.undecodable) == (1, 1)
    assert report.attributed_by_kind == {"buy": 2, "like": 1}
    assert report.conversions.by_kind["like"].orphan == 1
    assert report.as_of.offsets == {"impressions": {0: 7}, "conversions": {0: 8}}
    assert report.as_of.watermark_ms == T + 1500


def test_only_events_below_the_committed_offsets_are_in(kafka: str, prefix: str) -> None:
    config = _config(prefix)
    ensure_topics(config, kafka)
    _produce(config, kafka, _right())
    committer = Consumer({"bootstrap.servers": kafka, "group.id": join_group(config)})
    at = [
        TopicPartition(config.topic("impressions"), 0, 1),  # i2 is context: c2 belongs to it
        TopicPartition(config.topic("conversions"), 0, 3),
    ]
    committer.commit(offsets=at, asynchronous=False)
    committer.close()
    report = audit(config, kafka, settle_seconds=0)
    assert report.differences == [] and report.balanced
    assert (report.impressions.in_, report.impressions.sampled) == (1, 1)
    assert (report.conversions.in_, report.conversions.attributed) == (3, 2)


def test_a_join_that_has_taken_nothing_is_not_called_balanced(kafka: str, prefix: str) -> None:
    config = _config(prefix)
    ensure_topics(config, kafka)
    assert audit(config, kafka, settle_seconds=0).balanced  # no events: nothing to take
    _produce(config, kafka, [])
    report = audit(config, kafka, settle_seconds=0)
    assert not report.balanced
    assert report.reason == "the join has not completed a checkpoint that took an event"


def _without(*numbers: int) -> Callable[[list[Output]], None]:
    def plant(outputs: list[Output]) -> None:
        for number in sorted(numbers, reverse=True):
            del outputs[number]

    return plant


def _twice(number: int) -> Callable[[list[Output]], None]:
    return lambda outputs: outputs.append(outputs[number])


def _changed(number: int, **fields: Any) -> Callable[[list[Output]], None]:
    return lambda outputs: outputs[number].update(fields)


def _in_value(number: int, **fields: Any) -> Callable[[list[Output]], None]:
    def plant(outputs: list[Output]) -> None:
        outputs[number]["value"] = _bytes({**json.loads(outputs[number]["value"]), **fields})

    return plant


def _instead(number: int, output: Output) -> Callable[[list[Output]], None]:
    return lambda outputs: outputs.__setitem__(number, output)


DEFECTS: dict[str, tuple[Callable[[list[Output]], None], str, int, str]] = {
    "lost final": (_without(15), "impressions", 0, "lost: due at"),
    "lost early": (_without(0), "impressions", 0, "revisions are not 0, 1, 2"),
    "lost correction": (_without(7), "impressions", 0, "revisions are not 0, 1, 2"),
    "doubled final": (_twice(15), "impressions", 0, "ended more than once: sampled and sampled"),
    "doubled correction": (_twice(7), "impressions", 0, "revisions are not"),
    "label lost": (
        _in_value(16, labels={"buy": 0, "like": 0}, delays_ms={}),
        "impressions",
        1,
        "final sample has positive '', expected 'like'",
    ),
    "later conversion as first": (
        _in_value(15, delays_ms={"buy": 300}),
        "impressions",
        0,
        "final sample has delays 'buy:300', expected 'buy:100'",
    ),
    "value of another": (
        _in_value(15, values={"buy": 9.5}),
        "impressions",
        0,
        "final sample has values 'buy:9.5', expected ''",
    ),
    "label missing": (
        _in_value(16, labels={"like": 1}),
        "impressions",
        1,
        "labels for like, expected buy,like",
    ),
    "features touched": (
        _in_value(16, features={"age": 3}),
        "impressions",
        1,
        "does not carry it untouched",
    ),
    "produce time of another": (
        _in_value(15, produced_ms=PRODUCED["impressions"]),
        "impressions",
        0,
        "not that of the newest event",
    ),
    "correction not in the final": (
        _in_value(13, labels={"buy": 1}, delays_ms={"buy": 200}),
        "impressions",
        1,
        "early and corrections said 'buy', the final 'like'",
    ),
    "wrong attribution": (
        _changed(12, value=_attribution(1, "i1", 0)["value"]),
        "conversions",
        1,
        "attributed to impression i1, expected impression i2",
    ),
    "orphan with an impression": (
        _instead(6, _output("orphans", "conversions", 0, T + 500)),
        "conversions",
        0,
        "orphan, expected impression i1",
    ),
    "attributed outside the window": (
        _instead(14, _attribution(2, "i1", T + 1500)),
        "conversions",
        2,
        "attributed to impression i1, expected no impression",
    ),
    "late with an open impression": (
        _instead(6, _output("late", "conversions", 0, T + 500)),
        "conversions",
        0,
        "late, expected impression i1, which was open",
    ),
    "missing late conversion": (_without(11), "conversions", 4, "lost: due at"),
    "missing late impression": (_without(4), "impressions", 4, "lost: due at"),
    "late ahead of the watermark": (
        _changed(4, watermark_ms=T - 5001),
        "impressions",
        4,
        "late, but the watermark was",
    ),
    "orphan too soon": (
        _changed(14, watermark_ms=T + 899),
        "conversions",
        2,
        "orphan before the watermark",
    ),
    "missing orphan": (_without(14), "conversions", 2, "lost: due at"),
    "missing duplicate": (_without(2), "impressions", 2, "expected duplicate of offset 0"),
    "duplicate of nothing": (
        _instead(4, _output("duplicates", "impressions", 4, T - 1)),
        "impressions",
        4,
        "duplicate, but no earlier event",
    ),
    "duplicate taken": (
        _instead(9, _attribution(3, "i1", T + 200)),
        "conversions",
        3,
        "attributed, expected duplicate of offset 0",
    ),
    "missing undecodable": (_without(3), "impressions", 3, "lost, expected undecodable"),
    "good one called undecodable": (
        _instead(4, _output("undecodable", "impressions", 4, T - 1)),
        "impressions",
        4,
        "undecodable, but it decodes",
    ),
    "future one taken": (
        _instead(5, _output("late", "impressions", 5, T + 500 * DAY)),
        "impressions",
        5,
        "late, expected undecodable: it is ahead of the wall clock",
    ),
    "bytes changed": (_changed(4, value=b"{}"), "impressions", 4, "are not the original ones"),
    "event out of nothing": (
        _changed(4, offset=99),
        "impressions",
        99,
        "late, but there is no such event",
    ),
    "pending one with an impression": (
        lambda outputs: [o.update(watermark_ms=T + 50) for o in outputs] and _without(6)(outputs),
        "conversions",
        0,
        "lost, expected attribution to impression i1",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_defect_is_named(kafka: str, prefix: str, name: str) -> None:
    plant, stream, offset, problem = DEFECTS[name]
    outputs = _right()
    plant(outputs)
    report = _audit(kafka, prefix, outputs)
    assert not report.balanced
    named = [d.problem for d in report.differences if (d.stream, d.offset) == (stream, offset)]
    assert any(problem in text for text in named), report.differences


def test_output_that_cannot_be_read_is_named(kafka: str, prefix: str) -> None:
    outputs = _right()
    outputs[15]["value"] = b"{}"
    report = _audit(kafka, prefix, outputs)
    assert not report.balanced
    assert "samples partition 0 offset" in report.unreadable[0]

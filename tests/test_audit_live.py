"""`audit --follow` beside a join: rounds, what is told of a difference, and what is forgotten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from runtime.cli import app
from runtime.config_file import write_config
from settings.config import Config
from stream.audit_live import AuditMetrics, LiveAudit
from tests.test_audit import (
    CONVERSIONS,
    IMPRESSIONS,
    PRODUCED,
    T,
    _config,
    _impression,
    _output,
    _produce,
    _right,
    _sample,
)
from topics.admin import ensure_topics
from topics.names import join_group

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def _commit(config: Config, kafka: str, *, more: int = 0) -> None:
    """As the join does with a checkpoint that holds every event, and `more` impressions."""
    committer = Consumer({"bootstrap.servers": kafka, "group.id": join_group(config)})
    at = [
        TopicPartition(config.topic("impressions"), 0, len(IMPRESSIONS) + more),
        TopicPartition(config.topic("conversions"), 0, len(CONVERSIONS)),
    ]
    committer.commit(offsets=at, asynchronous=False)
    committer.close()


def _options(config: Config, kafka: str, folder: Path) -> list[str]:
    write_config(config, folder / "c.toml", comment="the stack")
    return ["--bootstrap", kafka, "--config", str(folder / "c.toml")]


def test_rounds_go_on_while_it_balances(kafka: str, prefix: str, tmp_path: Path) -> None:
    config = _config(prefix)
    ensure_topics(config, kafka)
    _produce(config, kafka, _right())
    _commit(config, kafka)
    arguments = ["audit", "--follow", "--every", "100ms", "--rounds", "3", "--metrics-port", "0"]
    done = CliRunner().invoke(app, arguments + _options(config, kafka, tmp_path))
    assert done.exit_code == 0, done.output
    assert "round 1: balanced, 15 events, 0 settled" in done.output
    assert "round 2: balanced" in done.output and done.output.rstrip().endswith("balanced")


def test_a_difference_ends_it_with_the_first_ids(kafka: str, prefix: str, tmp_path: Path) -> None:
    config = _config(prefix)
    ensure_topics(config, kafka)
    outputs = _right()
    del outputs[6]  # the attribution of c1
    _produce(config, kafka, outputs)
    _commit(config, kafka)
    arguments = ["audit", "--follow", "--every", "1s"]
    done = CliRunner().invoke(app, arguments + _options(config, kafka, tmp_path))
    assert done.exit_code == 1
    hour_ms = T // 3_600_000 * 3_600_000
    assert re.search(rf"buy, hour from {hour_ms}: \d differ, first c1", done.output), done.output


def test_metrics_and_what_is_forgotten(kafka: str, prefix: str, tmp_path: Path) -> None:
    config = _config(prefix)
    ensure_topics(config, kafka)
    _produce(config, kafka, _right())
    _commit(config, kafka)
    registry = CollectorRegistry()
    metrics = AuditMetrics(registry)
    live = LiveAudit(config, kafka)
    first = live.round()
    metrics.observe(first)
    assert first.balanced and live.events_held == 15  # nothing lies far enough behind
    assert registry.get_sample_value("headwater_audit_balanced") == 1
    labels = {"stream": "conversions", "verdict": "attributed"}
    assert registry.get_sample_value("headwater_audit_events", labels) == 3
    assert registry.get_sample_value("headwater_audit_rounds_total") == 1


def test_whole_pairs_far_behind_the_watermark_are_forgotten(kafka: str, prefix: str) -> None:
    config = _config(prefix)
    ensure_topics(config, kafka)
    _produce(config, kafka, _right())
    _commit(config, kafka)
    live = LiveAudit(config, kafka)
    assert live.round().balanced
    seen = (T + 5000, PRODUCED["impressions"] + 6)
    closed = [
        _output("orphans", "conversions", 6, T + 2600),
        _sample(6, "early", 0, T + 1500, seen),
        _sample(6, "final", 1, T + 8000, seen),
    ]
    newest = _impression("i6", T + 9000, user="u4")
    _produce(config, kafka, closed, impressions=[newest], conversions=[])
    _commit(config, kafka, more=1)
    second = live.round()
    assert second.balanced and second.settled == 0
    # Gone are the late i3 and c4. What stays: the pair of i4, whose time is in the future; i5,
    # whose verdict is newer than twice the window and the lateness; i6, which is open; and the
    # bytes that have no pair.
    assert live.events_held == 14
    third = live.round()
    assert third.balanced and third.settled == 2
    assert third.impressions.in_ + third.conversions.in_ == 14
    assert (third.impressions.late, third.conversions.late) == (0, 0)

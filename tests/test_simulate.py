"""`headwater simulate`: traffic into a broker of one's own, until its time is over."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli import app
from runtime.config_file import write_config
from runtime.demo import demo_config
from runtime.producing import event_time_ms
from runtime.sources.simulated import SimulatedTraffic
from topics.admin import ensure_topics
from topics.scan import read_to_end


@pytest.mark.kafka
@pytest.mark.slow
def test_it_sends_both_streams_in_real_time(kafka: str, prefix: str, tmp_path: Path) -> None:
    config = demo_config(SimulatedTraffic())
    config = config.model_copy(
        update={"kafka": config.kafka.model_copy(update={"topic_prefix": prefix})}
    )
    write_config(config, tmp_path / "c.toml", comment="of a test")
    ensure_topics(config, kafka)
    at = ["--bootstrap", kafka, "--config", str(tmp_path / "c.toml")]
    began = time.monotonic()
    ran = CliRunner().invoke(app, ["simulate", "--seconds", "3", "--rate", "100", *at])
    took = time.monotonic() - began
    assert ran.exit_code == 0, ran.output
    sent = {"impressions": 0, "conversions": 0}
    event_s = []
    for name, message in read_to_end(config, kafka, list(sent)):
        sent[name] += 1
        if name == "impressions" and (at_ms := event_time_ms(message.value() or b"")) is not None:
            event_s.append(at_ms / 1000)
    assert f"{sent['impressions']} impressions" in ran.output
    assert f"{sent['conversions']} conversions" in ran.output
    # However long a busy machine took to begin: 100 a second of event time, and none ahead of it.
    assert 20 < sent["impressions"] < 150 * took
    middle = sorted(event_s)[len(event_s) // 10 : -len(event_s) // 10]  # faults have odd times
    assert 70 < len(middle) / (middle[-1] - middle[0]) < 150

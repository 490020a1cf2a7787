"""`headwater simulate`: traffic into a broker of one's own, until its time is over."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli import app
from runtime.config_file import write_config
from runtime.demo import demo_config
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
    ran = CliRunner().invoke(app, ["simulate", "--seconds", "3", "--rate", "100", *at])
    assert ran.exit_code == 0, ran.output
    sent = [name for name, _ in read_to_end(config, kafka, ["impressions", "conversions"])]
    assert 150 < sent.count("impressions") < 600  # 3 s at 100/s, started on a busy machine
    assert f"{sent.count('impressions')} impressions" in ran.output
    assert f"{sent.count('conversions')} conversions" in ran.output

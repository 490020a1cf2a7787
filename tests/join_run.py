"""One real run of the join over given bytes: produce, `python -m stream --bounded`, read it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomlkit
from confluent_kafka import Producer

from settings.config import Config
from tests.readable import await_readable
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.join_header import JoinHeader
from topics.names import JOIN_OUTPUTS
from topics.scan import read_to_end

ROOT = Path(__file__).resolve().parent.parent
Coordinates = tuple[str, int, int]
"""(stream, partition, offset) of a source event."""
Bytes = tuple[bytes | None, bytes | None]
"""(key, value) of a source record."""


class Row:
    """One record that the join wrote."""

    def __init__(self, topic: str, key: bytes | None, value: bytes | None, headers: Any) -> None:
        self.topic = topic
        self.key = key
        self.value = value
        self.headers = {name: raw.decode("ascii") for name, raw in headers}
        said = JoinHeader.read(headers)
        self.about: Coordinates = said.source
        self.watermark_ms = said.watermark_ms

    @property
    def json(self) -> Any:
        assert self.value is not None
        return json.loads(self.value)


def produce(
    config: Config, bootstrap: str, events: dict[str, Sequence[Bytes]]
) -> dict[Coordinates, tuple[str, int]]:
    """Write each stream in the given order; source coordinates -> (stream, position)."""
    ensure_topics(config, bootstrap)
    placed: dict[Coordinates, tuple[str, int]] = {}
    settings = producer_settings(config, bootstrap) | {"queue.buffering.max.messages": 1_000_000}
    producer = Producer(settings)
    for stream, records in events.items():
        for position, (key, value) in enumerate(records):

            def written(error: Any, message: Any, where: Any = (stream, position)) -> None:
                assert error is None, error
                placed[where[0], message.partition(), message.offset()] = where

            producer.produce(config.topic(stream), key=key, value=value, on_delivery=written)
            if position % 1000 == 0:
                producer.poll(0)
    assert producer.flush(120) == 0
    return placed


def join_bounded(config: Config, bootstrap: str, folder: Path) -> list[Row]:
    """Run the join to the end of its input; every committed record of every output topic."""
    path = folder / "config.toml"
    values = config.model_dump(mode="json", exclude_none=True)
    path.write_text(tomlkit.dumps(values), encoding="utf-8")
    command = [sys.executable, "-m", "stream", "--config", str(path), "--bootstrap", bootstrap]
    command += ["--state-dir", str(folder / "state"), "--bounded"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = []
    await_readable(config, bootstrap, JOIN_OUTPUTS)
    for topic, message in read_to_end(config, bootstrap, JOIN_OUTPUTS):
        rows.append(Row(topic, message.key(), message.value(), message.headers()))
    return rows

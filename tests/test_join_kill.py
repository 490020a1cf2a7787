"""`kill -9` of the join and of the broker under traffic: nothing lost, nothing twice, by the audit.

The join is `python -m stream` over a broker of this test's own (it is killed, too), the traffic is
the simulator's in real time, with its duplicates, late, orphan and broken events.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit

from runtime.broker import EmbeddedBroker
from runtime.producing import EventProducer
from runtime.sources.simulated import SimulatedTraffic
from settings.config import Config
from settings.load import load_config
from stream.audit import audit
from topics.admin import ensure_topics
from topics.errors import TopicError
from topics.lag import committed_offsets
from topics.names import EVENT_TOPICS, join_group
from topics.scan import end_offsets

KILLS = 5 if os.environ.get("HEADWATER_PROVE") else 2
RATE = 60.0


class _Traffic(threading.Thread):
    """The simulator's events as they fall due, until `finish`."""

    def __init__(self, config: Config, bootstrap: str, source: SimulatedTraffic) -> None:
        super().__init__(daemon=True)
        self._producer = EventProducer(config, bootstrap)
        self._source = source
        self._finish = threading.Event()
        self.error: Exception | None = None

    @property
    def sent(self) -> int:
        return self._producer.sent.total()

    def run(self) -> None:
        try:
            for event in self._source.events():
                while (ahead := event.due_ms / 1000 - time.time()) > 0:
                    if self._finish.wait(min(ahead, 0.2)):
                        return
                if self._finish.is_set():
                    return
                self._producer.send(event.stream, event.line)
                self._producer.poll()
        except Exception as error:  # noqa: BLE001  told to the test, which fails with it
            self.error = error

    def finish(self) -> None:
        self._finish.set()
        self.join()
        self._producer.flush()
        if self.error is not None:
            raise self.error


class _Join:
    """`python -m stream`, started again after each kill as the supervisor would."""

    def __init__(self, config_path: Path, bootstrap: str, state: Path) -> None:
        self._command = [
            *(sys.executable, "-m", "stream", "--config", str(config_path)),
            *("--bootstrap", bootstrap, "--state-dir", str(state)),
        ]
        self._log = state.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, self.said()
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")[-3000:]


def _committed(config: Config, bootstrap: str) -> int:
    """Events in the newest completed checkpoint; 0 while the broker is not there to ask."""
    try:
        return sum(
            committed_offsets(config, bootstrap, join_group(config), EVENT_TOPICS)().values()
        )
    except TopicError:
        return 0


def _wait_for(what: str, done: object, seconds: float, join: _Join) -> None:
    assert callable(done)
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} not within {seconds} s:\n{join.said()}"
        time.sleep(0.2)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(tmp_path / "broker") as broker:
        yield broker


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.flink
@pytest.mark.kill
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", ["join", "broker"])
def test_nothing_is_lost_and_nothing_twice(
    victim: str, broker: EmbeddedBroker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = SimulatedTraffic(seed=5, rate=RATE)
    values = dict(source.config_values())
    values["join"] = {**values["join"], "policy": "correct"}
    path = tmp_path / "config.toml"
    path.write_text(tomlkit.dumps(values), encoding="utf-8")
    config = load_config(path, env={}).config
    ensure_topics(config, broker.bootstrap)
    seed = int(os.environ.get("HEADWATER_SEED", random.randrange(2**31)))
    print(f"HEADWATER_SEED={seed}")  # noqa: T201  shown when the test fails, to run it again
    draw = random.Random(seed)
    join = _Join(path, broker.bootstrap, tmp_path / "state")
    request.addfinalizer(join.stop)
    traffic = _Traffic(config, broker.bootstrap, source)
    join.start()
    traffic.start()
    before = 0
    for _ in range(KILLS):
        before = max(before, _committed(config, broker.bootstrap))
        _wait_for(
            "a checkpoint after the start",
            lambda before=before: _committed(config, broker.bootstrap) > before + RATE,
            180,
            join,
        )
        time.sleep(draw.uniform(0.0, 2.0))
        if victim == "join":
            join.kill()
            join.start()
        else:
            broker.kill()
            broker.start()
    traffic.finish()
    ends = sum(end_offsets(config, broker.bootstrap, EVENT_TOPICS).values())
    _wait_for(
        "the end of the traffic",
        lambda: _committed(config, broker.bootstrap) >= ends,
        180,
        join,
    )
    report = audit(config, broker.bootstrap, settle_seconds=30)
    assert report.balanced, report
    assert report.impressions.in_ + report.conversions.in_ == ends == traffic.sent
    assert report.impressions.sampled > 0 and report.conversions.attributed > 0

"""`kill -9` of the join and of the broker under traffic: nothing lost, nothing twice, by the audit.

The join is `python -m stream` over a broker of this test's own (it is killed, too), the traffic is
the simulator's in real time, with its duplicates, late, orphan and broken events.
"""

from __future__ import annotations

import os
import random
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
from stream.savepoint import take_savepoint
from tests.join_process import JoinProcess, taken, wait_for, wait_for_the_end
from topics.admin import ensure_topics

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
    backend = "rocksdb" if victim == "join" else "hashmap"
    values["join"] = {**values["join"], "policy": "correct", "state_backend": backend}
    path = tmp_path / "config.toml"
    path.write_text(tomlkit.dumps(values), encoding="utf-8")
    config = load_config(path, env={}).config
    ensure_topics(config, broker.bootstrap)
    seed = int(os.environ.get("HEADWATER_SEED", random.randrange(2**31)))
    print(f"HEADWATER_SEED={seed}")  # noqa: T201  shown when the test fails, to run it again
    draw = random.Random(seed)
    join = JoinProcess(path, broker.bootstrap, tmp_path / "state")
    request.addfinalizer(join.stop)
    traffic = _Traffic(config, broker.bootstrap, source)
    join.start()
    traffic.start()
    began = time.monotonic()

    def progress() -> None:
        before = taken(config, broker.bootstrap)

        def is_on() -> bool:
            join.keep()
            return taken(config, broker.bootstrap) > before + RATE

        wait_for("a checkpoint after the start", is_on, 300, join.said)

    for _ in range(KILLS):
        progress()
        time.sleep(draw.uniform(0.0, 2.0))
        if victim == "join":
            join.kill()  # it may go on as more tasks: the pages are dealt out anew
            tasks = values["join"].get("parallelism", 1) + draw.randrange(2)
            values["join"]["parallelism"] = min(tasks, 4)
            path.write_text(tomlkit.dumps(values), encoding="utf-8")
            join.start()
        else:
            broker.kill()
            broker.start()
    if victim == "join":  # behind a savepoint it may go on as fewer
        progress()
        take_savepoint(tmp_path / "state", stop=True)
        join.stop()
        values["join"]["parallelism"] = 1
        path.write_text(tomlkit.dumps(values), encoding="utf-8")
        join.start()
    closes_ms = config.window_ms_max + config.join.lateness + 3_000  # the first windows
    time.sleep(max(0.0, began + closes_ms / 1000 - time.monotonic()))
    traffic.finish()
    ends = wait_for_the_end(config, broker.bootstrap, join, 300)
    report = audit(config, broker.bootstrap, settle_seconds=90)
    assert report.balanced, report
    assert report.impressions.in_ + report.conversions.in_ == ends == traffic.sent
    assert report.impressions.sampled > 0 and report.conversions.attributed > 0

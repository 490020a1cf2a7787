"""The join on a standalone Flink cluster of two TaskManagers, killed piece by piece under traffic:
nothing lost, nothing twice, by the audit."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from runtime.broker import EmbeddedBroker
from runtime.config_file import write_config
from settings.config import Config
from stream.audit import audit
from stream.flink_rest import LIVE
from tests.flink_cluster import FlinkCluster
from tests.join_process import JoinProcess, taken, wait_for, wait_for_the_end
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.event import event_key
from topics.scan import read_to_end

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.flink,
    pytest.mark.slow,
    pytest.mark.kill,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        not os.environ.get("HEADWATER_PROVE"),
        reason="four JVMs started seven times: HEADWATER_PROVE=1 runs it, with `make prove`",
    ),
]
PROVE = bool(os.environ.get("HEADWATER_PROVE"))
ROUNDS = 3 if PROVE else 1
RATE = 50.0
SECONDS = 600.0


class _Traffic(threading.Thread):
    """An impression and a conversion per tick, in real time, until `finish`."""

    def __init__(self, config: Config, kafka: str, seed: int) -> None:
        super().__init__(daemon=True)
        self._config = config
        self._producer = Producer(producer_settings(config, kafka))
        self._draw = random.Random(seed)
        self._finish = threading.Event()
        self.sent = 0

    def run(self) -> None:
        for number in itertools.count():
            if self._finish.wait(1 / RATE):
                return
            now_ms, user = int(time.time() * 1000), f"u{self._draw.randrange(200)}"
            shown = {"impression_id": f"i{number}", "domain": "d", "features": {"n": number}}
            self.send("impressions", now_ms, user, **shown)
            done = {"conversion_id": f"c{number}", "kind": "buy", "value": None}
            named = f"i{number}" if self._draw.random() < 0.5 else None
            self.send("conversions", now_ms, user, **done, impression_id=named)

    def finish(self) -> None:
        self._finish.set()
        self.join()
        self.flush()

    def flush(self) -> None:
        assert self._producer.flush(120) == 0

    def send(self, stream: str, event_ms: int, user: str = "u0", **own: Any) -> None:
        event = {"event_ms": event_ms, "user_id": user, "item_id": "a", **own}
        key = event_key(user, "a")
        self._producer.produce(self._config.topic(stream), json.dumps(event).encode(), key)
        self._producer.poll(0)
        self.sent += 1


class _Submitted:
    """`headwater submit`, started again when it ends, as a supervisor would."""

    def __init__(
        self, join: JoinProcess, cluster: FlinkCluster, config: Config, kafka: str
    ) -> None:
        self.join = join
        self._cluster = cluster
        self._config = config
        self._kafka = kafka

    def keep(self) -> None:
        self._cluster.keep()
        self.join.keep()

    def progress(self, what: str) -> None:
        """Until a checkpoint holds a second's more events than now."""
        before = taken(self._config, self._kafka)

        def is_on() -> bool:
            self.keep()
            return taken(self._config, self._kafka) > before + RATE

        wait_for(f"progress after {what}", is_on, SECONDS, self.join.said)


def _restart_by_flink(cluster: FlinkCluster, submitted: _Submitted) -> None:
    """Kill a TaskManager; returns when the job runs again, without a new submission."""
    [job_id] = [job.job_id for job in cluster.rest.jobs() if job.state in LIVE]
    before = cluster.rest.restarts(job_id)
    cluster.kill_task_manager(0)
    cluster.add_task_manager()

    def runs_again() -> bool:
        submitted.keep()
        again = cluster.rest.restarts(job_id) > before
        return again and cluster.rest.state(job_id) == "RUNNING"

    wait_for("Flink's own restart", runs_again, SECONDS, submitted.join.said)


@pytest.fixture
def broker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker | None]:
    """Of the long count only: it is restarted under load."""
    if not PROVE:
        yield None
        return
    with EmbeddedBroker(tmp_path / "broker") as broker:
        yield broker


def test_a_cluster_killed_piece_by_piece_loses_nothing(
    broker: EmbeddedBroker | None,
    prefix: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    kafka = broker.bootstrap if broker else str(request.getfixturevalue("kafka"))
    seed = int(os.environ.get("HEADWATER_SEED", random.randrange(2**31)))
    print(f"HEADWATER_SEED={seed}")  # noqa: T201  shown when the test fails, to run it again
    draw = random.Random(seed)
    config = Config.model_validate(
        {
            "kafka": {"topic_prefix": prefix},
            "kinds": {"buy": {"window": "1s"}},
            "join": {"policy": "correct", "lateness": "200ms", "parallelism": 2},
        }
    )
    ensure_topics(config, kafka)
    write_config(config, tmp_path / "config.toml", comment="the cluster's join")
    with FlinkCluster(tmp_path / "flink") as cluster:
        join = JoinProcess(
            tmp_path / "config.toml",
            kafka,
            tmp_path / "state",
            *("--jobmanager", cluster.address),
            program=("runtime.cli", "submit"),
        )
        request.addfinalizer(join.stop)
        submitted = _Submitted(join, cluster, config, kafka)
        traffic = _Traffic(config, kafka, seed)
        cluster.start(2)
        join.start()
        traffic.start()
        submitted.progress("the start")
        for _ in range(ROUNDS):
            time.sleep(draw.uniform(0.0, 1.0))
            cluster.kill_task_manager(draw.randrange(2))
            cluster.add_task_manager()
            submitted.progress("a TaskManager was killed")
            join.kill()  # the job goes on without whoever submitted it, and is found again
            join.start()
            submitted.progress("the submitter was killed")
            wait_for("the job to be found", lambda: "join_found_running" in join.said(), SECONDS)
            assert len([job for job in cluster.rest.jobs() if job.state in LIVE]) == 1
            cluster.kill_job_manager()
            cluster.start_job_manager()
            submitted.progress("the JobManager was killed")
            if broker is not None:
                broker.kill()
                broker.start()
                submitted.progress("the broker was killed")
        early_ms = int(time.time() * 1000)
        time.sleep(3)
        traffic.finish()
        wait_for_the_end(config, kafka, join, SECONDS)
        _restart_by_flink(cluster, submitted)
        traffic.send("impressions", early_ms, impression_id="long ago", domain="d", features={})
        traffic.flush()
        events = wait_for_the_end(config, kafka, join, SECONDS)
        report = audit(config, kafka, settle_seconds=60)
        late = [message.value() for _, message in read_to_end(config, kafka, ["late"])]
    assert sum(b"long ago" in (value or b"") for value in late) == 1
    assert report.balanced, report
    assert report.impressions.in_ + report.conversions.in_ == events == traffic.sent
    assert report.impressions.sampled > 0 and report.conversions.attributed > 0

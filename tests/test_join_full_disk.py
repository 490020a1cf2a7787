"""The join on a full disk ends with a reason that names it, and goes on where it was.

The real job over a real broker; its state directory is a file system of a few megabytes. In
`make prove`, for it takes some minutes: a minute without checkpoints has to pass.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tomlkit

from settings.load import load_config
from stream.audit import audit
from tests.join_process import JoinProcess, taken, wait_for, wait_for_the_end
from tests.knobs import PROVE
from tests.small_disk import fill, small_disk
from tests.test_join_kill import RATE, _Traffic
from topics.admin import ensure_topics

ENDS_WITHIN_SECONDS = 240


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.skipif(not PROVE, reason="takes minutes: make prove")
@pytest.mark.flink
@pytest.mark.timeout(1500)
def test_a_full_disk_ends_the_join_by_name_and_costs_nothing(
    kafka: str, prefix: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from runtime.sources.simulated import SimulatedTraffic

    source = SimulatedTraffic(seed=5, rate=RATE)
    values = dict(source.config_values())
    values["kafka"] = {**values.get("kafka", {}), "topic_prefix": prefix}
    values["join"] = {**values["join"], "policy": "correct"}
    path = tmp_path / "config.toml"
    path.write_text(tomlkit.dumps(values), encoding="utf-8")
    config = load_config(path, env={}).config
    ensure_topics(config, kafka)
    with small_disk(tmp_path / "disk", "24m") as disk:
        join = JoinProcess(path, kafka, disk / "state", log=tmp_path / "join.log")
        request.addfinalizer(join.stop)
        traffic = _Traffic(config, kafka, source)
        join.start()
        traffic.start()
        wait_for("a first checkpoint", lambda: taken(config, kafka) > RATE, 420, join.said)
        ballast = fill(disk)
        filled_at = time.monotonic()
        assert join.process is not None
        assert join.process.wait(ENDS_WITHIN_SECONDS) == 1, join.said()
        print(f"ended after {time.monotonic() - filled_at:.0f} s")  # noqa: T201
        assert f"No space left on the disk of --state-dir {disk / 'state'}" in join.said()
        assert "make room on the disk" in join.said()
        ballast.unlink()
        join.start()
        traffic.finish()
        ends = wait_for_the_end(config, kafka, join, 420)
        report = audit(config, kafka, settle_seconds=30)
        assert report.balanced, report
        assert report.impressions.in_ + report.conversions.in_ == ends == traffic.sent
        join.stop()

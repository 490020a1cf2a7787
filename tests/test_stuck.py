"""A join that can get nowhere ends, and says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: a JVM and its gateway are one per process, and this one's is broken.
SCRIPT = """
import sys
from pathlib import Path
from settings.config import Config
from stream.__main__ import _free_port
from stream.errors import JoinFailed
from stream.job import JoinJob
from topics.admin import ensure_topics

bootstrap, prefix, state = sys.argv[1:]
config = Config(kafka={"topic_prefix": prefix})
ensure_topics(config, bootstrap)
job = JoinJob(
    config, bootstrap, Path(state), bounded=False, rest_port=_free_port(), has_run=lambda: False
)
client = job._client._j_job_client
cluster = client.getClass().getDeclaredField("miniCluster")
cluster.setAccessible(True)
cluster.get(client).terminateTaskManager(0).get()
try:
    job.wait(lambda: False)
except JoinFailed as failed:
    print("failed:", failed, flush=True)
"""


@pytest.mark.kafka
@pytest.mark.flink
@pytest.mark.slow
def test_a_join_whose_only_task_manager_has_ended_says_so(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """As after the fencing of its sink: Flink starts no second one, and waits for slots."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, kafka, prefix, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "failed: " in ran.stdout, ran.stderr[-3000:]
    assert "the embedded cluster's only TaskManager has ended" in ran.stdout

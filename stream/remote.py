"""The join on a Flink cluster: the same job, submitted to a JobManager, followed through its REST.

`python -m stream --target remote --jobmanager HOST:PORT` plans here, hands the plan and our jars to
the cluster and stays to watch. Killing that process kills nothing: the next one finds the running
job by its name and follows it. A JobManager that comes back without the job ends it (`JoinFailed`);
started again it submits anew from the newest checkpoint in the state directory, which every machine
of the cluster must see under the same path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from stream.errors import FlinkUnreachable, JoinFailed
from stream.flink_rest import LIVE, FlinkRest

_ABSENT_SECONDS = 120.0
"""A JobManager is waited for so long before its job is given up."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Cluster:
    """A standalone cluster's JobManager: its REST address."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


def submission_settings(settings: dict[str, str], cluster: Cluster) -> dict[str, str]:
    """`settings` of a run of its own made those of a submission: what the cluster decides (its
    ports, its memory) is left out."""
    own = ("rest.", "jobmanager.bind-host", "taskmanager.", "metrics.fetcher.")
    kept = {name: value for name, value in settings.items() if not name.startswith(own)}
    return kept | {
        "execution.target": "remote",
        "execution.attached": "false",
        "rest.address": cluster.host,
        "rest.port": str(cluster.port),
        # The sink's producers close their threads a moment after the job's class loader.
        "classloader.check-leaked-classloader": "false",
    }


def running_job(rest: FlinkRest, name: str) -> str | None:
    """Id of the job called `name` that may still write. A JobManager that is starting is waited
    for. Raises FlinkUnreachable."""
    deadline = time.monotonic() + _ABSENT_SECONDS
    while True:
        try:
            jobs = rest.jobs()
        except FlinkUnreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return next(
                (job.job_id for job in jobs if (job.name == name and job.state in LIVE)), None
            )


class RemoteJob:
    """One job on a cluster, whoever submitted it."""

    def __init__(self, rest: FlinkRest, job_id: str) -> None:
        self.rest = rest
        self.job_id = job_id

    def wait(self, stopping: Callable[[], bool]) -> bool:
        """Block until the job has ended as it should (True) or `stopping()` is true (False).

        A JobManager that does not answer is waited for. Raises JoinFailed with the last cause when
        the job failed, was cancelled by someone else, or is not known any more.
        """
        heard = time.monotonic()
        while not stopping():
            try:
                state = self.rest.state(self.job_id)
            except (FlinkUnreachable, httpx.HTTPStatusError) as error:
                if time.monotonic() - heard > _ABSENT_SECONDS:
                    raise JoinFailed(
                        f"{error}, for {_ABSENT_SECONDS:.0f} s", hint="is the JobManager up?"
                    ) from error
            else:
                heard = time.monotonic()
                if state == "FINISHED":
                    return True
                if state is None:
                    raise JoinFailed(
                        f"the JobManager at {self.rest.base_url} does not know the job any more:"
                        " it was restarted",
                        hint="start again: it is submitted anew from its newest checkpoint",
                    )
                if state not in LIVE:
                    cause = self.rest.failure(self.job_id).strip().splitlines()
                    last = [line for line in cause if line.startswith("Caused by: ")]
                    told = (last or cause or ["cancelled from outside"])[-1]
                    raise JoinFailed(f"the job is {state}: {told.removeprefix('Caused by: ')}")
            time.sleep(_POLL_SECONDS)
        return False

    def cancel(self, timeout_seconds: float = 10.0) -> None:
        """Stop the job and keep its newest checkpoint; waits for its end, gives up quietly."""
        deadline = time.monotonic() + timeout_seconds
        try:
            self.rest.cancel(self.job_id)
            while self.rest.state(self.job_id) in LIVE and time.monotonic() < deadline:
                time.sleep(0.1)
        except (FlinkUnreachable, httpx.HTTPStatusError):
            return

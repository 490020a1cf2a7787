"""Notices a join that runs, or restarts, without getting anywhere, and says why.

Flink by itself goes on for ever in two cases. A state directory whose disk is full fails every
checkpoint: nothing becomes visible, and a tolerance only turns that into restarts. And an event
that the operator cannot survive throws after every restart, as often as its backoff allows; where
the restarts are far enough apart, no limit on their rate ends it. So what counts here is progress:
completed checkpoints, and the source position in them.

In a third case nothing fails any more: where closing the sink throws as well, as it does once its
producer is fenced, Flink ends the whole TaskManager, and the embedded cluster has no other. The job
then counts as running and waits for slots.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import structlog

from topics.errors import TopicError
from topics.scan import Partition

CHECKPOINTLESS_SECONDS_MAX = 60.0
"""Without a completed checkpoint, while checkpoints fail. A broker that restarts takes less."""
RESTARTS_MAX = 5
"""Of the job from the same source position, each of which failed again."""
WORKERLESS_SECONDS_MAX = 6.0
"""Without a TaskManager in the embedded cluster, which starts no second one."""
LOOK_SECONDS = 2.0
_FULL_BYTES = 1 << 20
_log = structlog.get_logger()


class StuckWatch:
    """Call `reason` often; it looks every LOOK_SECONDS and is silent while Flink does not answer.

    `position` is the source position of the newest completed checkpoint, or None while it cannot be
    told. `embedded`: Flink's cluster lives in this process, with one TaskManager.
    """

    def __init__(
        self,
        rest: str,
        job_id: str,
        state_dir: Path,
        position: Callable[[], object],
        *,
        embedded: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = httpx.Client(base_url=rest, timeout=2.0)
        self._job = f"/jobs/{job_id}"
        self._state_dir, self._position, self._clock = state_dir, position, clock
        self._looked = self._progressed = self._worked = clock()
        self._embedded = embedded
        self._completed = self._failed = -1
        self._seen = self._restarts = 0
        self._at: object = None

    def reason(self) -> str | None:
        """Why the job gets nowhere, or None."""
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        try:
            return (
                self._without_workers(now) or self._without_checkpoints(now) or self._in_a_circle()
            )
        except (httpx.HTTPError, KeyError, ValueError, IndexError) as error:
            _log.debug("join_not_seen", error=str(error))
            return None

    def _without_workers(self, now: float) -> str | None:
        if not self._embedded or int(self._ask("/overview")["taskmanagers"]):
            self._worked = now
        if now - self._worked < WORKERLESS_SECONDS_MAX:
            return None
        reason = self._last_exception() or "Flink gave no reason"
        return f"the embedded cluster's only TaskManager has ended: {reason}"

    def _without_checkpoints(self, now: float) -> str | None:
        found = self._ask(f"{self._job}/checkpoints")
        completed, failed = int(found["counts"]["completed"]), int(found["counts"]["failed"])
        if completed != self._completed:
            self._completed, self._failed, self._progressed = completed, failed, now
            return None
        silent = now - self._progressed
        if failed == self._failed or silent < CHECKPOINTLESS_SECONDS_MAX:
            return None
        latest = found["latest"].get("failed") or {}
        told = str(latest.get("failure_message") or "").partition("\n")[0]
        reason = self._disk() or self._last_exception() or told or "Flink gave no reason"
        return (
            f"no checkpoint was completed for {silent:.0f} s, {failed - self._failed} failed: "
            f"{reason}"
        )

    def _disk(self) -> str:
        """That the state directory's disk is full, if it is: Flink's own message rarely says so."""
        usage = shutil.disk_usage(self._state_dir)
        if usage.free > max(_FULL_BYTES, usage.total // 100):
            return ""
        return (
            f"No space left on the disk of --state-dir {self._state_dir}: "
            f"{usage.free} of {usage.total} bytes are free"
        )

    def _in_a_circle(self) -> str | None:
        (found,) = self._ask(f"{self._job}/metrics", get="numRestarts")
        restarts = int(float(found["value"]))
        if restarts == self._seen:
            return None
        self._seen, at = restarts, self._position()
        if at is None or at != self._at:
            self._at, self._restarts = at, restarts
            return None
        if restarts - self._restarts < RESTARTS_MAX:
            return None
        return (
            f"restarted {restarts - self._restarts} times from the same source position, {at}: "
            f"{self._last_exception() or 'Flink gave no reason'}"
        )

    def _last_exception(self) -> str:
        """The last cause of a task's newest failure; empty where no task has failed."""
        history = self._ask(f"{self._job}/exceptions", maxExceptions="1")["exceptionHistory"]
        if not history["entries"]:
            return ""
        lines = str(history["entries"][0]["stacktrace"]).splitlines()
        causes = [line for line in lines if line.startswith("Caused by: ")]
        return causes[-1].removeprefix("Caused by: ") if causes else lines[0]

    def _ask(self, path: str, **query: str) -> Any:
        return self._client.get(path, params=query).raise_for_status().json()


def known_or_none(position: Callable[[], Mapping[Partition, int]]) -> Callable[[], object]:
    """`position` as a thing to compare and to tell; None where it is empty or not to be had."""

    def told() -> object:
        try:
            return {f"{name}-{n}": at for (name, n), at in sorted(position().items())} or None
        except TopicError:
            return None

    return told

"""Flink's REST, as far as the join needs it: is the job running, why not, stop it, savepoints."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import httpx

from stream.errors import FlinkUnreachable, SavepointFailed

LIVE = frozenset(
    {"INITIALIZING", "CREATED", "RUNNING", "FAILING", "RESTARTING", "RECONCILING", "CANCELLING"}
)
"""States of a job that may still write."""
_POLL_SECONDS = 0.2
_STARTING = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


class RunningJob(NamedTuple):
    job_id: str
    name: str
    state: str


class FlinkRest:
    """The REST of one JobManager (`base_url` such as http://127.0.0.1:8081)."""

    def __init__(self, base_url: str, timeout_seconds: float = 30.0) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout_seconds = timeout_seconds

    def jobs(self) -> list[RunningJob]:
        """Every job that it knows, finished ones included. Raises FlinkUnreachable."""
        found = self._ask("GET", "/jobs/overview")["jobs"]
        return [RunningJob(job["jid"], job["name"], job["state"]) for job in found]

    def slots(self) -> tuple[int, int]:
        """(free task slots, TaskManagers). Raises FlinkUnreachable."""
        found = self._ask("GET", "/overview")
        return int(found["slots-available"]), int(found["taskmanagers"])

    def state(self, job_id: str) -> str | None:
        """The job's state; None where a restarted JobManager has forgotten it."""
        try:
            return str(self._ask("GET", f"/jobs/{job_id}")["state"])
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return None
            raise

    def failure(self, job_id: str) -> str:
        """The text of the job's last failure; empty where there is none."""
        try:
            found = self._ask("GET", f"/jobs/{job_id}/exceptions")
        except (httpx.HTTPStatusError, FlinkUnreachable):
            return ""
        entries = found.get("exceptionHistory", {}).get("entries", [])
        return str(entries[0]["stacktrace"]) if entries else ""

    def restarts(self, job_id: str) -> int:
        """Times that Flink restarted the job by itself."""
        found = self._ask("GET", f"/jobs/{job_id}/metrics?get=numRestarts")
        return int(float(found[0]["value"])) if found else 0

    def cancel(self, job_id: str) -> None:
        """Ask for the end of the job; its retained checkpoints stay."""
        self._ask("PATCH", f"/jobs/{job_id}?mode=cancel")

    def savepoint(
        self, job_id: str, directory: str, *, stop: bool, timeout_seconds: float = 120.0
    ) -> str:
        """Write a savepoint under `directory` and return its URI; with `stop` the job ends with it,
        all that it wrote committed. Raises SavepointFailed, FlinkUnreachable."""
        if stop:
            path, body = f"/jobs/{job_id}/stop", {"targetDirectory": directory, "drain": False}
        else:
            path, body = (
                f"/jobs/{job_id}/savepoints",
                {"target-directory": directory, "cancel-job": False},
            )
        try:
            trigger = self._ask("POST", path, json=body)["request-id"]
        except httpx.HTTPStatusError as error:
            raise SavepointFailed(_said(error)) from error
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            found = self._ask("GET", f"/jobs/{job_id}/savepoints/{trigger}")
            if found["status"]["id"] == "COMPLETED":
                operation = found["operation"]
                if "location" in operation:
                    return str(operation["location"])
                cause = str(operation.get("failure-cause", {}).get("stack-trace", "unknown"))
                raise SavepointFailed(cause.strip().splitlines()[0])
            time.sleep(_POLL_SECONDS)
        raise SavepointFailed(f"not complete after {timeout_seconds:g} s")

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = httpx.request(
                method, self.base_url + path, timeout=self._timeout_seconds, **options
            )
        except httpx.TransportError as error:
            raise FlinkUnreachable(f"no JobManager answers at {self.base_url}: {error}") from error
        if answer.status_code in _STARTING:
            raise FlinkUnreachable(f"the JobManager at {self.base_url} is starting")
        answer.raise_for_status()
        return answer.json() if answer.content else None


def _said(error: httpx.HTTPStatusError) -> str:
    try:
        lines = str(error.response.json()["errors"][0]).strip().splitlines()
    except (ValueError, KeyError, IndexError):
        return str(error)
    return lines[0] if lines else str(error)

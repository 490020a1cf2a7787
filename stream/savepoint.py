"""Savepoints: stop a join so that the next release, or the next config, goes on exactly behind it.

Each run leaves `job.json` in its state directory: where its Flink answers, and as what. A run that
is supervised is not stopped under its supervisor, which would start it again: `request` leaves word
that its next stop is to be one with a savepoint.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

import msgspec

from stream.errors import FlinkUnreachable, SavepointFailed
from stream.flink_rest import FlinkRest


class RunningAt(msgspec.Struct, frozen=True, kw_only=True):
    """Where the run of a state directory can be asked."""

    rest: str
    job_id: str
    pid: int


def write_running(state_dir: Path, running: RunningAt) -> None:
    (state_dir / "job.json").write_bytes(msgspec.json.encode(running) + b"\n")


def read_running(state_dir: Path) -> RunningAt:
    """Raises SavepointFailed where no join has run."""
    try:
        return msgspec.json.decode((state_dir / "job.json").read_bytes(), type=RunningAt)
    except (OSError, msgspec.DecodeError) as error:
        raise SavepointFailed(f"no join has run with --state-dir {state_dir}: {error}") from error


def take_savepoint(state_dir: Path, *, stop: bool) -> Path:
    """Write a savepoint of the running join under `<state_dir>/savepoints` and return its path.

    With `stop` the job ends with it: everything that it wrote is committed, and the next start goes
    on from there. Without, it goes on, and the savepoint soon is older than what the topics hold:
    a copy of the state to look at or to keep, not one to start the same join from. Raises
    SavepointFailed, FlinkUnreachable.
    """
    running = read_running(state_dir)
    folder = (state_dir / "savepoints").resolve()
    folder.mkdir(exist_ok=True)
    before = set(folder.iterdir())
    try:
        uri = FlinkRest(running.rest).savepoint(running.job_id, folder.as_uri(), stop=stop)
    except FlinkUnreachable:
        # A job that has stopped takes its JVM with it, often before it could be asked about it.
        new = [path for path in set(folder.iterdir()) - before if (path / "_metadata").is_file()]
        if not stop or len(new) != 1:
            raise
        return new[0]
    return Path(unquote(urlparse(uri).path))


def request(state_dir: Path) -> None:
    """The next stop of the join is one with a savepoint."""
    _request_file(state_dir).touch()


def is_requested(state_dir: Path) -> bool:
    """Whether one was asked for; asking is forgotten."""
    file = _request_file(state_dir)
    asked = file.exists()
    file.unlink(missing_ok=True)
    return asked


def _request_file(state_dir: Path) -> Path:
    return state_dir / "stop-with-savepoint"

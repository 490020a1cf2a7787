"""`run.json` in a stack's directory: who runs there, where to reach it, and only one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec
import psutil

from settings.logs import RUN_ID_VARIABLE


class StackRunning(RuntimeError):
    """Another stack holds this directory. Operator action: `headwater down`, or another --dir."""


class NoStack(RuntimeError):
    """No stack runs in this directory. Operator action: `headwater up`, or name its --dir."""


class ChildState(msgspec.Struct, kw_only=True):
    """One process as `status` shows it. `metrics_port` is None for the broker."""

    state: str
    pid: int | None
    restarts: int
    reason: str
    log: str
    metrics_port: int | None = None


class RunState(msgspec.Struct, kw_only=True):
    """A stack. Times are Unix milliseconds; `pid_created` is psutil's, against reused pids."""

    run_id: str
    pid: int
    pid_created: float
    started_ms: int
    bootstrap: str
    cluster_id: str
    topic_prefix: str
    config: str
    embedded: bool
    children: dict[str, ChildState] = {}

    @property
    def is_alive(self) -> bool:
        """Does the process that wrote it still run?"""
        try:
            return bool(psutil.Process(self.pid).create_time() == self.pid_created)
        except psutil.NoSuchProcess:
            return False


def read_run(directory: Path) -> RunState | None:
    """What run.json says, of a live stack or a dead one; None without or with a broken one."""
    try:
        return msgspec.json.decode((directory / "run.json").read_bytes(), type=RunState)
    except (OSError, msgspec.DecodeError):
        return None


def require_run(directory: Path) -> RunState:
    """The live stack of `directory`. Raises NoStack."""
    run = read_run(directory)
    if run is None:
        raise NoStack(f"no stack was started in {directory}: run `headwater up --dir {directory}`")
    if not run.is_alive:
        raise NoStack(
            f"the stack in {directory} is not running (its pid {run.pid} is gone): "
            f"`headwater up --dir {directory}` starts it again"
        )
    return run


def write_run(directory: Path, run: RunState) -> None:
    """Replace run.json atomically."""
    part = directory / "run.json.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2))
    part.replace(directory / "run.json")


class DirectoryLock:
    """Held by the one stack of `directory`; the kernel frees it however the process ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: int | None = None

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        file = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            run = read_run(self._directory)
            holder = f"pid {run.pid}" if run is not None and run.is_alive else "another process"
            raise StackRunning(
                f"a stack already runs in {self._directory} ({holder}): stop it with "
                f"`headwater down --dir {self._directory}`, or use another --dir"
            ) from None
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def end_strays(run_id: str, timeout_s: float = 10) -> int:
    """Kill what a dead stack left behind (a JVM whose parent was killed); how many there were."""
    strays = list(_processes_of(run_id))
    for stray in strays:
        with contextlib.suppress(psutil.NoSuchProcess):
            stray.kill()
    psutil.wait_procs(strays, timeout=timeout_s)
    return len(strays)


def _processes_of(run_id: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid != os.getpid() and process.environ().get(RUN_ID_VARIABLE) == run_id:
                yield process


def now_ms() -> int:
    """Wall clock, Unix milliseconds."""
    return time.time_ns() // 1_000_000

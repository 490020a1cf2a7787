"""Keeps a stack's processes running: starts them in order, restarts what crashes, stops them all.

One thread, no callbacks: `poll()` moves every child on and returns at once, so that a live view and
a plain loop drive it alike. Call it from the thread that lives longest (see `runtime.child`).
A child that dies is started again after a pause that grows; after `RESTARTS_MAX` restarts of one
child within a minute everything is stopped and the child is named. So it is, however slowly, when a
child ends RESTARTS_MAX + 1 times without having moved on: an event that kills it, a full disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import structlog

from runtime.child import spawn

RESTARTS_MAX = 3
RESTART_WINDOW_S = 60.0
HEALTHY_S = 600.0
"""A run of this length counts as one that got somewhere, for there may have been no traffic."""
BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
REASON_LINES = 3

_log = structlog.get_logger("supervisor")
State = Literal["waiting", "starting", "running", "backoff", "stopped"]


class StackFailed(RuntimeError):
    """A child could not be kept running; everything was stopped.

    Operator action: read the reason and the named log.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One process to keep running. `ready` is asked until it says yes; it must return quickly."""

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    after: tuple[str, ...] = ()
    """Children that must be ready before this one starts the first time."""
    before_start: Callable[[], None] | None = None
    """Runs before every start; what it raises stops the stack."""
    env: Mapping[str, str] = field(default_factory=dict)
    position: Callable[[], object] | None = None
    """How far it has come, of everything that survives it; None = not known now."""
    ready_timeout_s: float = 120.0
    stop_timeout_s: float = 20.0


@dataclass(slots=True)
class Child:
    """What is known of one child now. `reason` says why it last ended."""

    spec: ChildSpec
    log_path: Path
    state: State = "waiting"
    pid: int | None = None
    restarts: int = 0
    reason: str = ""
    ready_seconds: float | None = None
    started: float = 0.0
    resume_at: float = 0.0
    ended_at: deque[float] = field(default_factory=deque)
    position: object = None
    """Where it was when it last ended, and how often it has ended there since it moved."""
    ends_there: int = 0
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None
    log_start: int = 0


class Supervisor:
    """Children in start order; their logs are `logs/<number>-<name>.log` under `directory`.

    `clock` gives monotonic seconds. `on_change` is called after any child changed its state.
    """

    def __init__(
        self,
        directory: Path,
        specs: Sequence[ChildSpec],
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        logs = directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.children = {
            spec.name: Child(spec, logs / f"{number}-{spec.name}.log")
            for number, spec in enumerate(specs, start=1)
        }
        self._clock = clock
        self._on_change = on_change

    @property
    def restarts(self) -> dict[str, int]:
        """Restarts of each child since the stack started."""
        return {name: child.restarts for name, child in self.children.items()}

    @property
    def all_ready(self) -> bool:
        return all(child.state == "running" for child in self.children.values())

    def start(self, timeout_s: float = 300.0) -> None:
        """Start everything and wait until all children are ready. Raises StackFailed."""
        deadline = self._clock() + timeout_s
        while not self.all_ready:
            self.poll()
            if self._clock() > deadline:
                slow = [name for name, c in self.children.items() if c.state != "running"]
                self.stop()
                raise StackFailed(f"not ready after {timeout_s:g} s: {', '.join(slow)}")
            time.sleep(0.05)

    def poll(self) -> None:
        """Move every child on. Raises StackFailed after stopping everything."""
        try:
            for child in self.children.values():
                self._advance(child)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop every child in reverse order and wait; one that does not end in time is killed.

        Idempotent. A second Ctrl-C while stopping kills at once.
        """
        for child in reversed(self.children.values()):
            try:
                self._stop(child)
            except KeyboardInterrupt:
                for other in self.children.values():
                    _signal_session(other, signal.SIGKILL)
                raise
        self._on_change()

    def _advance(self, child: Child) -> None:
        if child.state == "waiting":
            if all(self.children[name].state == "running" for name in child.spec.after):
                self._start(child)
        elif child.state == "backoff":
            if self._clock() >= child.resume_at:
                self._start(child)
        elif child.state in ("starting", "running"):
            assert child.process is not None
            if child.process.poll() is not None:
                self._ended(child)
            elif child.state == "starting":
                self._check_ready(child)

    def _start(self, child: Child) -> None:
        if child.spec.before_start is not None:
            child.spec.before_start()
        child.log = child.log_path.open("ab")
        child.log_start = child.log.tell()
        child.process = spawn(child.spec.command, child.log, env={**os.environ, **child.spec.env})
        child.pid = child.process.pid
        child.started = self._clock()
        child.state = "starting"
        _log.info("started", child=child.spec.name, pid=child.pid, restarts=child.restarts)
        self._on_change()

    def _check_ready(self, child: Child) -> None:
        if child.spec.ready():
            child.state = "running"
            child.ready_seconds = self._clock() - child.started
            _log.info("ready", child=child.spec.name, seconds=round(child.ready_seconds, 1))
            self._on_change()
        elif self._clock() - child.started > child.spec.ready_timeout_s:
            _log.error("not ready in time", child=child.spec.name)
            _signal_session(child, signal.SIGKILL)

    def _ended(self, child: Child) -> None:
        child.reason = self._describe_end(child)
        # What it started itself (a JVM) must not outlive it and hold its ports.
        _signal_session(child, signal.SIGKILL)
        self._close(child)
        now = self._clock()
        child.ended_at.append(now)
        while child.ended_at[0] < now - RESTART_WINDOW_S:
            child.ended_at.popleft()
        if len(child.ended_at) > RESTARTS_MAX:
            child.state = "stopped"
            raise StackFailed(
                f"{child.spec.name} ended again after {RESTARTS_MAX} restarts within "
                f"{RESTART_WINDOW_S:g} s, so everything was stopped: {child.reason} "
                f"(log: {child.log_path})"
            )
        self._refuse_a_circle(child, now)
        child.restarts += 1
        pause_s = BACKOFF_S[min(len(child.ended_at), len(BACKOFF_S)) - 1]
        child.resume_at = now + pause_s
        child.state = "backoff"
        _log.warning(
            "ended, restarting", child=child.spec.name, reason=child.reason, pause_s=pause_s
        )
        self._on_change()

    def _refuse_a_circle(self, child: Child, now: float) -> None:
        """Raise StackFailed for a child that ends again and again where it was."""
        at = None if child.spec.position is None else child.spec.position()
        moved = at is None or at != child.position or now - child.started > HEALTHY_S
        child.position, child.ends_there = at, 1 if moved else child.ends_there + 1
        if at is not None and child.ends_there > RESTARTS_MAX:
            child.state = "stopped"
            raise StackFailed(
                f"{child.spec.name} ended {child.ends_there} times at the same position, {at}, so "
                f"everything was stopped: {child.reason} (log: {child.log_path})"
            )

    def _describe_end(self, child: Child) -> str:
        assert child.process is not None
        code = child.process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"killed by {signal.Signals(-code).name}"
                return _with_log(how, child)
        return _with_log(f"exit code {code}", child)

    def _stop(self, child: Child) -> None:
        if child.process is not None:
            if child.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(child.spec.stop_timeout_s)
            _signal_session(child, signal.SIGKILL)
            child.process.wait()
            self._close(child)
        child.state = "stopped"

    def _close(self, child: Child) -> None:
        child.process = None
        child.pid = None
        if child.log is not None:
            child.log.close()
            child.log = None


def _signal_session(child: Child, number: signal.Signals) -> None:
    """Signal the child and all it started; it leads a process group of its own."""
    if child.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)


def _with_log(how: str, child: Child) -> str:
    """`how`, and the last lines that it wrote since it was started."""
    with contextlib.suppress(OSError), child.log_path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(child.log_start, size - 8192))
        text = log.read().decode("utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return f"{how}: " + " | ".join(lines[-REASON_LINES:])
    return f"{how}, it wrote nothing"

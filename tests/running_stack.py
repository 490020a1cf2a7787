"""A whole stack by the command line, with traffic of every fault going through it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from runtime.run_state import RunState, require_run
from runtime.sources.simulated import SimulatedTraffic
from settings.logs import RUN_ID_VARIABLE

HEADWATER = [sys.executable, "-m", "runtime.cli"]
CONFIG = """
domains = ["feed"]
[kinds.click]
window = "10s"
[kinds.like]
window = "20s"
[kinds.purchase]
window = "30s"
[join]
policy = "correct"
[checkpoints]
every = "20s"
"""


def headwater(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One verb, to its end."""
    return subprocess.run(
        [*HEADWATER, *arguments], capture_output=True, text=True, timeout=400, check=False
    )


def until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.2)


def processes_of(run_id: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_ID_VARIABLE) == run_id:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def write_traffic(directory: Path, impressions: int, *, began_s: float = 60.0) -> None:
    """Two files of traffic that started `began_s` ago, with every fault."""
    start_ms = time.time_ns() // 1_000_000 - int(began_s * 1000)
    source = SimulatedTraffic(start_ms=start_ms, impressions_max=impressions)
    files = {n: (directory / f"{n}.jsonl").open("wb") for n in ("impressions", "conversions")}
    for event in source.events():
        files[event.stream].write(event.line + b"\n")
    for file in files.values():
        file.close()


class RunningStack:
    """`headwater up` in `folder / "stack"`, and producers that send its traffic at a rate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / "stack"
        self.at = ("--dir", str(self.directory))
        self._producers: dict[str, subprocess.Popen[bytes]] = {}
        self._log = (folder / "up.log").open("wb")
        (folder / "c.toml").write_text(CONFIG)
        self.up = self._start("up", *self.at, "--config", str(folder / "c.toml"))

    @property
    def run(self) -> RunState:
        return require_run(self.directory)

    def wait(self) -> None:
        """Until it says that it is up."""
        log = self.folder / "up.log"
        until(
            lambda: b"\nup: Kafka at" in log.read_bytes() or self.up.poll() is not None, 400, "up"
        )
        assert self.up.poll() is None, log.read_text()

    def send(self, **per_second: str) -> None:
        """`impressions=` and `conversions=` a second, until the files end."""
        for stream, rate in per_second.items():
            file = str(self.folder / f"{stream}.jsonl")
            self._producers[stream] = self._start("produce", stream, file, *self.at, "--rate", rate)

    def silence(self, stream: str) -> None:
        """No more of what was sent by `send`."""
        producer = self._producers.pop(stream)
        producer.kill()
        producer.wait()

    def kill(self) -> None:
        """SIGKILL of the supervisor, as a crash."""
        os.kill(self.up.pid, signal.SIGKILL)
        self.up.wait()

    def close(self) -> None:
        for stream in list(self._producers):
            self.silence(stream)
        if self.up.poll() is None:
            headwater("down", *self.at)
            self.up.wait(180)
        self._log.close()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*HEADWATER, *arguments], stdout=self._log, stderr=self._log)

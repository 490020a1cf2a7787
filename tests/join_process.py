"""`python -m stream` as a process of a test, and waiting for what it does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from settings.config import Config
from topics.errors import TopicError
from topics.lag import committed_offsets
from topics.names import EVENT_TOPICS, join_group
from topics.scan import record_ends

QUICK_JVM = (
    "-Xms128m -Xmx700m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData"
    " -XX:+ExitOnOutOfMemoryError"
)
"""JVM_ARGS for a short life: half of its processor time would go into compiling."""


class JoinProcess:
    """Started again after a kill as a supervisor would; its stderr goes to `log`, which is
    `state.log` unless that would lie on a disk that is full."""

    def __init__(
        self,
        config_path: Path,
        bootstrap: str,
        state: Path,
        *more: str,
        log: Path | None = None,
        program: Sequence[str] = ("stream",),
    ) -> None:
        self._command = [
            *(sys.executable, "-m", *program, "--config", str(config_path)),
            *("--bootstrap", bootstrap, "--state-dir", str(state), *more),
        ]
        self._log = state.with_suffix(".log") if log is None else log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | {"JVM_ARGS": QUICK_JVM}
            )

    def keep(self) -> None:
        """Start it again if it has ended by itself."""
        if self.has_ended:
            self.start()

    def kill(self) -> None:
        assert self.process is not None and self.process.poll() is None, self.said()
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(180)

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")[-4000:] if self._log.exists() else ""

    def metrics_port(self) -> int:
        found = re.findall(r"http://127.0.0.1:(\d+)/metrics", self.said())
        return int(found[-1])


def wait_for(
    what: str, done: Callable[[], bool], seconds: float, told: Callable[[], str] = str
) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} not within {seconds} s:\n{told()}"
        time.sleep(0.2)


def taken(config: Config, bootstrap: str) -> int:
    """Events below the committed offsets; 0 while the broker is not there to ask."""
    try:
        found = committed_offsets(config, bootstrap, join_group(config), EVENT_TOPICS)()
    except TopicError:
        return 0
    return sum(found.values())


def wait_for_the_end(config: Config, bootstrap: str, join: JoinProcess, seconds: float) -> int:
    """Until the join has taken everything; how many events that are."""
    ends = sum(record_ends(config, bootstrap, EVENT_TOPICS).values())

    def has_all() -> bool:
        join.keep()
        return taken(config, bootstrap) >= ends

    wait_for("the end of the events", has_all, seconds, join.said)
    return ends

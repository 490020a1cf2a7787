"""The supervisor with real, tiny processes: restarts with a reason, gives up, leaves nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runtime import supervisor as module
from runtime.supervisor import ChildSpec, StackFailed, Supervisor

pytestmark = pytest.mark.slow
PYTHON = [sys.executable, "-S", "-c"]
SLEEP = [*PYTHON, "import time; time.sleep(600)"]


def _spec(name: str, command: list[str], after: tuple[str, ...] = ()) -> ChildSpec:
    return ChildSpec(name=name, command=command, ready=lambda: True, after=after, stop_timeout_s=2)


def _until(condition: Callable[[], bool], supervisor: Supervisor, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        supervisor.poll()
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.01,))


def test_a_killed_child_is_restarted_with_its_reason(tmp_path: Path) -> None:
    chatty = [*PYTHON, "import time; print('last words', flush=True); time.sleep(600)"]
    supervisor = Supervisor(tmp_path, [_spec("first", SLEEP), _spec("chatty", chatty)])
    supervisor.start()
    child = supervisor.children["chatty"]
    before = child.pid
    log = tmp_path / "logs" / "2-chatty.log"
    _until(lambda: b"last words" in log.read_bytes(), supervisor)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    _until(lambda: child.restarts == 1 and child.state == "running", supervisor)
    assert child.pid not in (None, before)
    assert child.reason == "killed by SIGKILL: last words"
    assert supervisor.restarts == {"first": 0, "chatty": 1}
    supervisor.stop()


def test_three_restarts_in_a_minute_stop_everything_and_name_the_child(tmp_path: Path) -> None:
    crash = [*PYTHON, "import sys; sys.exit('no disk')"]
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    supervisor = Supervisor(tmp_path, [_spec("steady", SLEEP), _spec("broken", crash)])
    with pytest.raises(StackFailed, match=r"broken ended again after 3 restarts.*no disk"):
        while True:
            supervisor.poll()
            time.sleep(0.01)
    assert supervisor.children["broken"].restarts == 3
    assert supervisor.children["steady"].pid is None
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before  # another test's broker may be there


def test_a_child_that_gets_nowhere_is_ended_however_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No limit on restarts in a minute would ever see it; one that moves on between is spared."""
    monkeypatch.setattr(module, "RESTART_WINDOW_S", 0.0)
    positions = iter([7, 7, 7, None, 8, 8, 8, 8])
    crash = [*PYTHON, "import sys; sys.exit('an event that kills')"]
    spec = ChildSpec(
        name="join", command=crash, ready=lambda: True, position=lambda: next(positions)
    )
    supervisor = Supervisor(tmp_path, [spec])
    told = r"join ended 4 times at the same position, 8, so everything.*an event that kills"
    with pytest.raises(StackFailed, match=told):
        while True:
            supervisor.poll()
            time.sleep(0.01)
    assert supervisor.children["join"].restarts == 7
    assert next(positions, None) is None


def test_a_child_starts_only_after_those_it_needs(tmp_path: Path) -> None:
    ready = False
    broker = ChildSpec(name="broker", command=SLEEP, ready=lambda: ready, stop_timeout_s=2)
    supervisor = Supervisor(tmp_path, [broker, _spec("join", SLEEP, after=("broker",))])
    for _ in range(5):
        supervisor.poll()
    assert supervisor.children["join"].state == "waiting"
    ready = True
    _until(lambda: supervisor.all_ready, supervisor)
    supervisor.stop()


def test_a_child_deaf_to_sigterm_is_killed_with_all_it_started(tmp_path: Path) -> None:
    deaf = [
        *PYTHON,
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(p.pid, flush=True); time.sleep(600)",
    ]
    supervisor = Supervisor(tmp_path, [_spec("deaf", deaf)])
    supervisor.start()
    log = tmp_path / "logs" / "1-deaf.log"
    _until(lambda: log.read_bytes().endswith(b"\n"), supervisor)
    grandchild = int(log.read_text())
    supervisor.stop()
    _until_gone(grandchild)


@pytest.mark.kill
def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from runtime.supervisor import ChildSpec, Supervisor\n"
        f"s = Supervisor(Path({str(tmp_path)!r}), [ChildSpec(name='a', command={SLEEP!r},"
        " ready=lambda: True)])\n"
        "s.start(); print(s.children['a'].pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = b""
        while not line.strip().isdigit():
            line = process.stdout.readline()
            assert line, "it ended early"
        process.kill()
    _until_gone(int(line))


def _until_gone(pid: int, timeout_s: float = 60) -> None:
    """It has ended, whether or not its parent has asked how."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {pid} lives on"
            time.sleep(0.01)

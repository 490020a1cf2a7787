"""Starts a program that dies with its parent. `python child.py PARENT_PID PROGRAM ARG…`

A child must not outlive a supervisor that was killed with SIGKILL, and nobody is left to stop it
then: so the kernel is asked to kill it (PR_SET_PDEATHSIG, which survives exec). A program of its
own rather than a `preexec_fn`, which may deadlock in a process with threads. The signal is tied to
the *thread* that started the child: start children from threads that live as long as the process.
Imports nothing of ours and little else, since it runs before every child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1


def spawn(
    command: Sequence[str],
    log: IO[bytes],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, output to `log`; killed when this thread ends.

    A session of its own, so that a terminal's Ctrl-C reaches only us and we stop it in order, and
    so that its own children can be signalled together with it (`os.killpg(pid, …)`).
    """
    own = [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]
    return subprocess.Popen(
        own,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=None if env is None else dict(env),
        cwd=cwd,
    )


def _become(parent_pid: int, command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"cannot tie the child to its parent: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:  # it died before we asked
        sys.exit("the parent is gone")
    try:
        os.execvp(command[0], command)  # noqa: S606  the whole point: become the program
    except OSError as error:
        sys.exit(f"cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])

"""One run of the join per state directory, and a JVM that never outlives it.

PyFlink's JVM notices the death of its Python only after seconds. Until then it would go on
committing transactions beside the run that has already restored the checkpoint before them: samples
twice. So the kernel kills the JVM with us, and both hold one lock on the state directory, which the
next run waits for: it is free only when both are gone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from stream.errors import JoinError

_PR_SET_PDEATHSIG = 1
_WAIT_SECONDS = 15.0


class StateDirBusy(JoinError):
    """Another join runs on this state directory. Operator action: stop it, or use another one."""


def lock_state_dir(state_dir: Path) -> IO[str]:
    """The lock, held as long as any process has the file open; waits for a dying run.

    Raises StateDirBusy, which names the holder's pid.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = (state_dir / "lock").open("a+")
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.seek(0)
                holder = lock.read().strip()
                raise StateDirBusy(f"{state_dir} is in use by the join with pid {holder}") from None
            time.sleep(0.05)
        else:
            break
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def tether(gateway_server: ModuleType, lock: IO[str], stderr: Path) -> None:
    """Make `pyflink.pyflink_gateway_server` start its JVM tied to this thread and to `lock`.

    Its stderr goes to a file: PyFlink opens a pipe for it that nobody reads, which would block the
    JVM once it is full.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()
    start: Any = subprocess.Popen

    def popen(*arguments: Any, preexec_fn: Callable[[], None] | None = None, **options: Any) -> Any:
        def become() -> None:
            if preexec_fn is not None:
                preexec_fn()
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        with stderr.open("ab") as log:
            return start(
                *arguments,
                **(options | {"stderr": log, "pass_fds": (lock.fileno(),)}),
                preexec_fn=become,
            )

    vars(gateway_server)["Popen"] = popen

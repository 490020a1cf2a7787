"""One process owns a store: an flock on `owner.lock`, which the kernel drops when it dies.

The file's text only tells the refused one whom it met; the lock itself decides. Stale text of a
dead owner is harmless. RocksDB's own LOCK file stands behind this one.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from embedding_store.errors import StoreLocked, StoreUnreadable


class OwnerLock:
    """Held from construction to `release` (or the end of the process)."""

    def __init__(self, directory: Path, owner: str) -> None:
        """Raises StoreLocked, with the holder's name and pid, if anyone else holds it."""
        file = directory / "owner.lock"
        try:  # not inherited over exec (O_CLOEXEC), so a child cannot keep it
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreUnreadable(f"cannot open the lock file: path=`{file}`") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            name, pid = _holder(os.pread(self._descriptor, 4096, 0))
            os.close(self._descriptor)
            raise StoreLocked(directory, name, pid) from None
        text = json.dumps({"owner": owner, "pid": os.getpid()}).encode()
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)
        except OSError as error:
            self.release()
            raise StoreUnreadable(f"cannot write the lock file: path=`{file}`") from error

    def release(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _holder(text: bytes) -> tuple[str, int]:
    try:
        told = json.loads(text)
        return str(told["owner"]), int(told["pid"])
    except (ValueError, KeyError, TypeError):  # met between its lock and its writing
        return "unknown", -1

"""A commit's table file (SST), built by a child process so that training keeps its interpreter.

Handing rows to RocksDB from the trainer's own process holds Python's lock, and training waits; the
child shares the rows through memory and takes none of it. It is started once, at the first
large commit, imports neither torch nor numba, and dies with its parent.

    parent                                              child (table_writer.py)
    rows, deletions, state -> shared memory
    job, one line of JSON -> its stdin                  sorts, hashes, writes the table, fsync
    reply, one line of JSON <- its stdout               the commit's record, or why there is none
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from embedding_store.commit import Changes, CommitRecord
from embedding_store.errors import StoreUnreadable
from embedding_store.packed_state import pack_state

MEMORY_BYTES_MIN: Final = 1 << 20


class Job(msgspec.Struct, kw_only=True):
    """One table to build, from the shared memory: rows, deleted keys, state, one after another."""

    file: str
    rows: int
    words: int
    deleted: int
    state_bytes: int
    last: CommitRecord
    rows_total: int


class Reply(msgspec.Struct, kw_only=True):
    record: CommitRecord | None = None
    table_bytes: int = 0
    error: str = ""


class SharedMemory:
    """Anonymous memory that the child inherits: no name that could be left behind."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("headwater-commit")
        self._bytes = 0
        self._map: mmap.mmap | None = None

    def reserve(self, size: int) -> memoryview:
        """At least `size` writable bytes, with what was there before."""
        if self._map is None or size > self._bytes:
            self._bytes = max(MEMORY_BYTES_MIN, size + size // 2)
            os.ftruncate(self.descriptor, self._bytes)
            self._map = mmap.mmap(self.descriptor, self._bytes)
        return memoryview(self._map)

    def close(self) -> None:
        self._map = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class TableBuilder:
    """The child, and the memory shared with it. `place` and `build` by one thread at a time."""

    def __init__(self, directory: Path) -> None:
        """Tables are built in `directory`, which is emptied: what lies there was never taken in."""
        self._directory = directory
        self._memory = SharedMemory()
        self._child: subprocess.Popen[bytes] | None = None
        discard_unfinished(directory)

    def place(self, rows_many: int, words: int) -> NDArray[np.float32]:
        """float32[N, words] in the shared memory, to be filled."""
        memory = self._memory.reserve(4 * words * rows_many)
        rows = np.frombuffer(memory, np.float32, rows_many * words)
        return rows.reshape(rows_many, words)

    def build(
        self, changes: Changes, last: CommitRecord, rows_total: int
    ) -> tuple[Path, CommitRecord, int]:
        """(table file, its commit's record, its bytes), synced. Raises StoreUnreadable.

        `changes.rows` are those from `place`. Waits for the child without holding Python's lock.
        """
        self._directory.mkdir(exist_ok=True)
        state = pack_state(changes.state)
        state_bytes = sum(map(len, state))
        at = changes.rows.nbytes
        memory = self._memory.reserve(at + changes.deleted.nbytes + state_bytes)
        for part in (changes.deleted.tobytes(), *state):
            memory[at : at + len(part)] = part
            at += len(part)
        file = self._directory / f"commit-{last.id + 1}.sst"
        rows_many, words = changes.rows.shape
        reply = self._ask(
            Job(
                file=str(file),
                rows=rows_many,
                words=words,
                deleted=len(changes.deleted),
                state_bytes=state_bytes,
                last=last,
                rows_total=rows_total,
            )
        )
        if reply.record is None:
            raise StoreUnreadable(f"a commit's table was not built: error=`{reply.error}`")
        return file, reply.record, reply.table_bytes

    def _ask(self, job: Job) -> Reply:
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(msgspec.json.encode(job) + b"\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError as error:
            raise StoreUnreadable(f"the table builder is gone: error=`{error}`") from error
        if not line.endswith(b"\n"):
            raise StoreUnreadable(f"the table builder died: exit_status=`{child.wait()}`")
        return msgspec.json.decode(line, type=Reply)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            package = str(Path(__file__).resolve().parent.parent)
            paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "embedding_store.table_writer",
                    str(self._memory.descriptor),
                    str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[self._memory.descriptor],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        return self._child

    @property
    def child_pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """End the child; idempotent. A table under way is given up."""
        child, self._child = self._child, None
        if child is not None:
            assert child.stdin is not None and child.stdout is not None
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
        self._memory.close()


def discard_unfinished(directory: Path) -> None:
    """Remove tables that RocksDB has not taken in: their commits did not happen."""
    if directory.is_dir():
        for file in directory.iterdir():
            file.unlink()

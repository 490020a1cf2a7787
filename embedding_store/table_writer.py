"""The child process of `builder.py`: builds one table file after another until its stdin ends.

Run as `python -m embedding_store.table_writer MEMORY_DESCRIPTOR PARENT_PID`. A table counts only
once the parent has RocksDB take it in, so this may be killed at any moment.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from embedding_store.builder import Job, Reply
from embedding_store.commit import Changes, next_record, writes_of
from embedding_store.errors import StoreError
from embedding_store.kept_pages import keep_written_pages
from embedding_store.packed_state import unpack_state
from embedding_store.rocks import write_table

PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    memory_descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return
    # Ctrl-C goes to the whole terminal's group; the parent commits once more before it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not keep_written_pages():
        sys.stderr.write(
            "no seccomp filters here: rows just written are read from the disk again\n"
        )
    for line in sys.stdin.buffer:
        reply = _answer(msgspec.json.decode(line, type=Job), memory_descriptor)
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.buffer.flush()


def _answer(job: Job, memory_descriptor: int) -> Reply:
    try:
        return _build(job, memory_descriptor)
    except (StoreError, OSError, MemoryError) as error:
        Path(job.file).unlink(missing_ok=True)  # a full disk gets its room back
        return Reply(error=str(error) or type(error).__name__)


def _build(job: Job, memory_descriptor: int) -> Reply:
    rows_bytes = 4 * job.words * job.rows
    size = rows_bytes + 8 * job.deleted + job.state_bytes
    memory = mmap.mmap(memory_descriptor, size, prot=mmap.PROT_READ)  # unmapped with its last view
    changes = Changes(
        np.frombuffer(memory, np.float32, job.rows * job.words).reshape(job.rows, job.words),
        np.frombuffer(memory, np.uint64, job.deleted, rows_bytes),
        unpack_state(memory[rows_bytes + 8 * job.deleted :]),
    ).sorted()
    record = next_record(job.last, changes, job.rows_total)
    return Reply(record=record, table_bytes=write_table(Path(job.file), writes_of(record, changes)))


if __name__ == "__main__":
    main()

"""A commit on its way to the disk, beside the training that goes on.

At most one at a time. Its outcome is settled in the store's own thread; the thread here only waits
for the child's table and has RocksDB take it in.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from embedding_store.builder import TableBuilder
from embedding_store.commit import Changes, CommitRecord, next_record, row_keys_of, writes_of
from embedding_store.errors import StoreMisuse
from embedding_store.rocks import Rocks
from embedding_store.state import StagedState
from embedding_store.tiers import Tiers

Written = tuple[CommitRecord, int]
"""A commit that is on disk, and the bytes of its table file; 0 = it went through the log."""


class PendingCommit:
    """What `commit_begin` returns."""

    def __init__(self, commit_id: int, settle: Callable[[], int], written: Future[Written]) -> None:
        self.commit_id = commit_id
        self._settle, self._written = settle, written

    @property
    def done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return self._written.done()

    def wait(self) -> int:
        """Returns the newest commit's id once this one is durable. A failure poisons the store."""
        return self._settle()


class Commits:
    """Takes what changed, writes it, and settles what that changed. What raises here poisons."""

    def __init__(
        self,
        rocks: Rocks,
        tiers: Tiers,
        state: StagedState,
        newest: CommitRecord,
        *,
        directory: Path,
        table_rows_min: int,
    ) -> None:
        """Unfinished tables in `directory` are removed: they belong to no commit."""
        self.newest = newest
        """Of the newest commit that is settled."""
        self.builder = TableBuilder(directory)
        self.rows_written = 0
        self.table_bytes = 0
        self._rocks, self._tiers, self._state = rocks, tiers, state
        self._table_rows_min = table_rows_min
        self._thread: ThreadPoolExecutor | None = None
        self._written: Future[Written] | None = None
        self._gained = 0

    @property
    def rows_total(self) -> int:
        """In the store now, whatever of it is committed."""
        return self.newest.rows_total + self._gained + self._tiers.rows_gained

    def refuse_second(self) -> None:
        """Raises StoreMisuse while a commit is under way."""
        if self._written is not None:
            raise StoreMisuse(f"a commit is under way: wait for it: commit=`{self.newest.id + 1}`")

    def begin(self) -> Future[Written]:
        """Copy what changed and start to write it; a small commit is on disk when this returns."""
        self._tiers.stage_admission(self._state)
        slots, spilled, deleted = self._tiers.changes()
        rows_many, words = len(slots) + len(spilled), self._tiers.words
        state = self._state.commit_begins()
        as_table = rows_many + len(deleted) >= self._table_rows_min
        if as_table:
            rows = self.builder.place(rows_many, words)
        else:
            rows = np.empty((rows_many, words), np.float32)
        self._gained = self._tiers.commit_begins(slots, spilled, rows)
        rows_total = self.newest.rows_total + self._gained
        changes = Changes(rows, deleted, state)
        if as_table:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-commit")
            self._written = self._thread.submit(self._write_table, changes, self.newest, rows_total)
        else:
            # Written first: close would wait for ever for a future that a failed write left open.
            record_and_bytes = self._write_batch(changes, rows_total)
            self._written = Future()
            self._written.set_result(record_and_bytes)
        return self._written

    def _write_table(self, changes: Changes, last: CommitRecord, rows_total: int) -> Written:
        table, record, table_bytes = self.builder.build(changes, last, rows_total)
        with self._tiers.cold.taking_in(table):
            self._rocks.ingest(table)
        return record, table_bytes

    def _write_batch(self, changes: Changes, rows_total: int) -> Written:
        ordered = changes.sorted()
        record = next_record(self.newest, ordered, rows_total)
        keys = np.concatenate([row_keys_of(changes.rows), changes.deleted])
        with self._tiers.cold.logging(keys):
            self._rocks.write(writes_of(record, ordered))
        return record, 0

    def settle(self) -> int:
        """Wait for the commit under way, if any; the newest commit's id."""
        if self._written is not None:
            self.newest, table_bytes = self._written.result()
            self._written, self._gained = None, 0
            self._tiers.committed()
            self._state.committed()
            self.rows_written += self.newest.rows_written
            self.table_bytes += table_bytes
        return self.newest.id

    def close(self) -> None:
        """Returns when the commit under way is on disk, or has failed."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        if self._written is not None and self._written.exception() is None:
            self.settle()
        self.builder.close()

"""Rows on disk, read from mapped tables; by RocksDB wherever those do not do.

RocksDB decides what is stored, keeps it and merges it; here is only a faster way to read its
tables, which never change once written. What is read from:

    view     the live tables, newest first, each indexed (mapped_table.py)
    logged   keys that were written through RocksDB's log since: RocksDB itself reads them

A merge changes no content, so a view stays right while RocksDB merges beneath it (the mapped files
live on, unnamed); it is renewed beside the training once the merged table is indexed. A commit's
table is indexed before RocksDB takes it in. Until the first view is there, which the first read
begins, and for good if a table is not of the known form or is damaged, every row is read by
RocksDB, which names the fault.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import StoreError, StoreUnreadable
from embedding_store.index import Index
from embedding_store.mapped_table import MappedTable, TableUnfit
from embedding_store.rocks import Rocks
from embedding_store.row_copies import copy_rows

LOGGED_MAX: Final = 1 << 17
"""Keys read by RocksDB because of the log; before there are more, the log is made a table."""

LISTINGS_MAX: Final = 10

Identity = tuple[int, int]
"""Device and inode: a table that RocksDB has taken in got another name."""


class _Logged:
    """Keys written through the log since the tables last held everything."""

    def __init__(self, keys_max: int = LOGGED_MAX) -> None:
        self._index = Index(keys_max)
        self.many = 0

    def add(self, keys: NDArray[np.uint64]) -> None:
        self._index.assign(keys, np.zeros(len(keys), np.int64))
        self.many += len(keys)  # at most

    def has(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        if not self.many:
            return np.zeros(len(keys), np.bool_)
        return self._index.find(keys) >= 0


class ColdRows:
    """`read` by any thread; the others by whoever commits."""

    def __init__(self, rocks: Rocks, words: int) -> None:
        """No row may have been written since `rocks` was opened: opening leaves none in the log."""
        self._rocks, self._words = rocks, words
        self._known: dict[Identity, MappedTable] = {}
        self._now: tuple[tuple[MappedTable, ...] | None, _Logged] = (None, _Logged())
        """The view, and what is not in its tables."""
        self._usable = rocks.reads == "mmap"
        self._lock = threading.RLock()
        """Held while RocksDB's content changes, and while a view of it is made."""
        self._indexer = ThreadPoolExecutor(1, thread_name_prefix="store-index")
        self._renewing = False
        self._asked = False
        """Since the last commit: where every row is hot, nothing is indexed."""

    @property
    def mapped(self) -> bool:
        """Whether rows are read from mapped tables now, and not by RocksDB."""
        return self._now[0] is not None

    def tables(self) -> set[Identity]:
        """That are read from now."""
        return {table.identity for table in self._now[0] or ()}

    def wait_indexed(self) -> None:
        """Returns when what was live at the call is read from mapped tables, if it can be."""
        self._indexer.submit(self._renew).result()

    def read(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(rows float32[F, words] of the keys that exist, in order; found bool[N])."""
        self._asked = True
        tables, logged = self._now
        if tables is None:
            self._renew_beside()
            return self._rocks.get_rows(keys, self._words)
        order = np.argsort(keys)  # tables are in order of key: near each other in it, and in memory
        wanted = keys[order]
        rows = np.empty((len(keys), self._words), np.float32)
        found = logged.has(wanted)
        todo = np.flatnonzero(~found)
        if len(todo) < len(keys):
            among = np.flatnonzero(found)
            read, there = self._rocks.get_rows(wanted[among], self._words)
            rows[among[there]], found[among] = read, there
        try:
            for table in tables:
                if not len(todo):
                    break
                todo = table.read(wanted, todo, rows.view(np.uint8), found)
        except TableUnfit:
            self._give_up()
            return self._rocks.get_rows(keys, self._words)
        place = np.empty(len(keys), np.int64)
        place[order] = np.arange(len(keys))
        there = found[place]
        as_asked = np.empty((int(there.sum()), self._words), np.float32)
        copy_rows(rows, place[there], as_asked)
        return as_asked, there

    @contextmanager
    def taking_in(self, table: Path) -> Iterator[None]:
        """Around RocksDB's taking in of a commit's `table`, which is newer than all the others."""
        asked, self._asked = self._asked, False
        newest = self._indexed(table) if asked and self.mapped else None
        with self._lock:
            yield
            tables, logged = self._now
            if tables is not None and newest is not None:
                self._known[newest.identity] = newest
                self._now = ((newest, *tables), logged)
            else:
                self._now = (None, logged)  # the next read has it renewed
        if asked:
            self._renew_beside()

    @contextmanager
    def logging(self, keys: NDArray[np.uint64]) -> Iterator[None]:
        """Around a write of rows, or deletions, of `keys` through RocksDB's log."""
        with self._lock:
            if self._usable and self._now[1].many + len(keys) > LOGGED_MAX:
                self._rocks.flush()
                self._now = (None, _Logged(max(LOGGED_MAX, len(keys))))
            if self._usable:
                self._now[1].add(keys)
            yield

    def close(self) -> None:
        """Before RocksDB is closed."""
        self._give_up()
        self._indexer.shutdown(wait=True, cancel_futures=True)

    def _give_up(self) -> None:
        """From here on RocksDB reads every row."""
        with self._lock:
            self._usable = False
            self._known, self._now = {}, (None, self._now[1])

    def _indexed(self, file: Path) -> MappedTable | None:
        """None if its rows are for RocksDB to read."""
        try:
            return MappedTable(file, 4 * self._words)
        except FileNotFoundError:
            return None  # merged away meanwhile
        except (TableUnfit, OSError, ValueError, MemoryError):
            self._give_up()
            return None

    def _renew_beside(self) -> None:
        if self._usable and not self._renewing:
            self._renewing = True
            self._indexer.submit(self._renew)

    def _renew(self) -> None:
        """Index the tables that are not, then read from exactly those that are live."""
        try:
            self._index_live()
            with self._lock:
                in_tables = self._rocks.log_is_empty  # asked first: a flush after it is in the list
                live = self._live()
                if self._usable and all(identity in self._known for identity in live):
                    self._known = {identity: self._known[identity] for identity in live}
                    logged = _Logged() if in_tables else self._now[1]
                    self._now = (tuple(self._known.values()), logged)
        except StoreError:
            pass  # a database that cannot be asked fails who depends on it
        finally:
            self._renewing = False

    def _index_live(self) -> None:
        for identity, file in self._live().items():
            if identity not in self._known and self._usable:
                table = self._indexed(file)
                if table is not None:
                    self._known[identity] = table

    def _live(self) -> dict[Identity, Path]:
        """The live tables, newest first."""
        for _ in range(LISTINGS_MAX):
            with suppress(FileNotFoundError):  # merged away between the two questions
                return {_identity(file): file for file in self._rocks.live_tables()}
        raise StoreUnreadable("RocksDB names tables that are not there")


def _identity(file: Path) -> Identity:
    status = file.stat()
    return status.st_dev, status.st_ino

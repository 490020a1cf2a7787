"""What one commit changes, and the record that closes it: the thing that decides it happened.

A commit is one synced WriteBatch when small; when large, one table file (SST) that a child process
builds and RocksDB takes in by one edit of its manifest. Either way rows, deletions, state and the
record come together or not at all.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import itemgetter
from typing import Final

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from embedding_store.errors import StoreCorrupt
from embedding_store.packed_state import pack_state
from embedding_store.rocks import Write, row_names


class CommitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Written in the same batch, or the same table file, as everything that it counts."""

    id: int
    """1, 2, 3, ...; 0 is the empty store."""
    rows_written: int
    """Deleted ones included."""
    state_written: int
    rows_total: int
    """Rows in the store after this commit; `verify` counts them."""
    history: str
    """XXH3-64 over the last commit's `history` and this batch: equal in two stores iff they were
    given the same commits, cut at the same places."""

    def encode(self) -> bytes:
        """Eight hex digits of CRC-32, a space, JSON."""
        text = msgspec.json.encode(self)
        return b"%08x " % zlib.crc32(text) + text


FIRST = CommitRecord(id=0, rows_written=0, state_written=0, rows_total=0, history="")
COMMIT_NAME: Final = b"mcommit"
ROWS_AT_A_TIME: Final = 8_192
"""In order of key, and as Python objects: a commit of many rows must not take several times their
bytes, nor new memory from the system at each."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Everything that one commit writes; in any order, no key twice."""

    rows: NDArray[np.float32]
    """float32[N, words]; a row's first eight bytes are its key."""
    deleted: NDArray[np.uint64]
    """uint64[K]: keys of rows that are to be gone."""
    state: Sequence[Write]

    def sorted(self) -> SortedChanges:
        """The same in order of key, by which it is hashed and written."""
        return SortedChanges(
            self.rows,
            np.argsort(row_keys_of(self.rows)),
            np.sort(self.deleted),
            sorted(self.state, key=itemgetter(0)),
        )


@dataclass(frozen=True, slots=True)
class SortedChanges:
    """`Changes` whose rows stay where they are: only some of them at a time are copied."""

    rows: NDArray[np.float32]
    order: NDArray[np.int64]
    """int64[N]: rows[order] are in order of key."""
    deleted: NDArray[np.uint64]
    """uint64[K] in order."""
    state: Sequence[Write]
    """In order of key."""

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """rows[order], some after another, each good until the next one."""
        some = np.empty((min(ROWS_AT_A_TIME, len(self.order)), self.rows.shape[1]), np.float32)
        for first in range(0, len(self.order), ROWS_AT_A_TIME):
            chosen = self.order[first : first + ROWS_AT_A_TIME]
            block = some[: len(chosen)]
            np.take(self.rows, chosen, axis=0, out=block, mode="clip")
            yield block


def row_keys_of(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """uint64[N] of whole rows float32[N, words]."""
    return np.ascontiguousarray(rows[:, :2]).view(np.uint64).ravel()


def decode_record(data: bytes) -> CommitRecord:
    """Raises StoreCorrupt unless the checksum and every field are right."""
    told, _, text = data.partition(b" ")
    if told != b"%08x" % zlib.crc32(text):
        raise StoreCorrupt(f"the commit record fails its checksum: record=`{data!r}`")
    try:
        return msgspec.json.decode(text, type=CommitRecord)
    except msgspec.DecodeError as error:
        raise StoreCorrupt(f"the commit record is not one: record=`{data!r}`") from error


def next_record(last: CommitRecord, changes: SortedChanges, rows_total: int) -> CommitRecord:
    """The record after `last` for `changes` that leave `rows_total` rows."""
    digest = xxhash.xxh3_64(last.history.encode())
    digest.update(b"%d:%d:" % (len(changes.rows), len(changes.deleted)))
    for block in changes.blocks():
        digest.update(block.data.cast("B"))
    digest.update(changes.deleted.tobytes())
    for part in pack_state(changes.state):
        digest.update(part)
    return CommitRecord(
        id=last.id + 1,
        rows_written=len(changes.rows) + len(changes.deleted),
        state_written=len(changes.state),
        rows_total=rows_total,
        history=digest.hexdigest(),
    )


def writes_of(record: CommitRecord, changes: SortedChanges) -> Iterator[Write]:
    """The record and `changes` as RocksDB gets them: in order of database key.

    That order is m (the record), r (rows), s (state): see `rocks.py`.
    """
    rows: Iterator[Write] = chain.from_iterable(_row_writes(changes))
    if len(changes.deleted):
        deletions: Iterator[Write] = zip(row_names(changes.deleted), repeat(None), strict=False)
        rows = heapq.merge(rows, deletions, key=itemgetter(0))
    return chain([(COMMIT_NAME, record.encode())], rows, changes.state)


def _row_writes(changes: SortedChanges) -> Iterator[Iterator[Write]]:
    """Some rows after another: between two of them no step of Python's is taken."""
    for block in changes.blocks():
        values = block.view(f"V{block.itemsize * block.shape[1]}").ravel().tolist()
        yield zip(row_names(row_keys_of(block)), values, strict=True)

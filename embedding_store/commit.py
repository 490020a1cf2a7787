"""The record that closes a commit: which one it is, and what the store holds as of it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec
import xxhash

from embedding_store.errors import StoreCorrupt
from embedding_store.rocks import Write


class CommitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Written in the same batch as everything that it counts."""

    id: int
    """1, 2, 3, ...; 0 is the empty store."""
    rows_written: int
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


def decode_record(data: bytes) -> CommitRecord:
    """Raises StoreCorrupt unless the checksum and every field are right."""
    told, _, text = data.partition(b" ")
    if told != b"%08x" % zlib.crc32(text):
        raise StoreCorrupt(f"the commit record fails its checksum: record=`{data!r}`")
    try:
        return msgspec.json.decode(text, type=CommitRecord)
    except msgspec.DecodeError as error:
        raise StoreCorrupt(f"the commit record is not one: record=`{data!r}`") from error


def next_record(
    last: CommitRecord, rows: Sequence[Write], state: Sequence[Write], rows_created: int
) -> CommitRecord:
    """The record after `last` for a batch of `rows` and `state`, both sorted."""
    digest = xxhash.xxh3_64(last.history.encode())
    for key, value in (*rows, *state):
        digest.update(key)
        digest.update(b"-" if value is None else b"+%d:" % len(value) + value)
    return CommitRecord(
        id=last.id + 1,
        rows_written=len(rows),
        state_written=len(state),
        rows_total=last.rows_total + rows_created,
        history=digest.hexdigest(),
    )

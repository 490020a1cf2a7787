"""Checks RocksDB's log files (write-ahead log, MANIFEST) record by record, without RocksDB.

A file is blocks of 32 KiB; a block is records, its tail of less than a header is zero:

    masked crc32c of type and data, 4 B | length, 2 B | type, 1 B | data

RocksDB's own reader takes a last record that seems longer than the file for one that a crash tore
off, whatever made it seem so. Here a record whose length alone was damaged is told from a torn one:
its checksum, which does not cover the length, still fits a part of the bytes that follow.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedding_store.crc32c import crc32c, masked, prefix_with, unmasked

_BLOCK: Final = 32 * 1024
_HEADER: Final = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class LogFault:
    """The first record that is not what was written; everything from `offset` on is lost."""

    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class LogCheck:
    """`torn` = the file ends inside a record, as a crash leaves it; that record never counted."""

    records: int
    torn: bool
    fault: LogFault | None


def check_log(file: Path) -> LogCheck:
    """Read the whole file. Raises OSError."""
    data = memoryview(file.read_bytes())
    at, records, inside = 0, 0, False
    while at < len(data):
        room = _BLOCK - at % _BLOCK
        if room < _HEADER.size:
            if any(data[at : at + room]):
                return LogCheck(records, False, LogFault(at, "the tail of a block is not zero"))
            at += room
            continue
        if len(data) - at < _HEADER.size:
            return LogCheck(records, True, None)
        stored, length, kind = _HEADER.unpack_from(data, at)
        end = at + _HEADER.size + length
        if end > len(data) or length > room - _HEADER.size:
            return _beyond(data, at, stored, records, room)
        if masked(crc32c(data[at + 6 : end])) != stored:
            return LogCheck(records, False, LogFault(at, "a record fails its checksum"))
        expected = (_MIDDLE, _LAST) if inside else (_FULL, _FIRST)
        if kind not in expected:
            reason = f"a record's part of type {kind}, expected one of {expected}"
            return LogCheck(records, False, LogFault(at, reason))
        inside = kind in (_FIRST, _MIDDLE)
        records += not inside
        at = end
    return LogCheck(records, inside, None)


def _beyond(data: memoryview, at: int, stored: int, records: int, room: int) -> LogCheck:
    """A record that says it is longer than what is left: torn, or its length is damaged."""
    left = min(len(data) - at, room)
    whole = prefix_with(data[at + 6 : at + left], unmasked(stored)) > 0
    if whole or at + room <= len(data):
        return LogCheck(records, False, LogFault(at, "a record's length is damaged"))
    return LogCheck(records, True, None)

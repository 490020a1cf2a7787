"""One of RocksDB's table files (SST), mapped into memory and indexed by row key.

RocksDB finds a row in a mapped table in 3 to 4 us: filter, index block, search in a data block and
its checksum, anew for each row. A table never changes, so all of that can be done once: every
block's checksum is verified as the table is taken into use, and the place of each row noted, 14
to 15 bytes a row. After that a row costs a few cache lines, and asking for one that is not here
next to nothing (`key_filter.py`).

    keys    uint64[N]   ascending
    starts  uint32[B]   where keys of each range of top bits begin: keys are hashes, spread evenly
    place   uint32[N]   of the value in the file, from its anchor; GONE = the row was deleted
    anchor  uint64[N / 65536]

The format is that of `table_file.py`.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.cache_line import WORDS, lowest, matches
from embedding_store.kernel import kernel
from embedding_store.key_filter import KeyFilter
from embedding_store.lanes import copy_bytes
from embedding_store.prefetch import prefetch
from embedding_store.rocks import ROW_PREFIX
from embedding_store.table_file import TableLayout, read_layout
from embedding_store.xxh3 import LANES, LONG, xxh3_64_long

GONE: Final = 0xFFFFFFFF
_ANCHOR_BITS: Final = 16
_RANGE_ROWS: Final = 4
"""Keys that one entry of `starts` stands for, at most, on average."""
_AHEAD: Final = 24
_ROW: Final = ROW_PREFIX[0]
_TRAILER: Final = 5
_ROW_KEY: Final = 17
"""Prefix, key, and RocksDB's eight bytes: sequence number and kind."""


class TableUnfit(Exception):
    """The table is damaged, or not of the form that is read here: RocksDB has to read it."""


class MappedTable:
    """Rows of one table file. Immutable; any thread."""

    def __init__(self, file: Path, row_bytes: int) -> None:
        """Map, verify and index. Raises TableUnfit, OSError (the file may be merged away)."""
        descriptor = os.open(file, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            self.identity = (status.st_dev, status.st_ino)
            self._map = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        data = np.frombuffer(self._map, np.uint8)
        layout = read_layout(memoryview(self._map))
        if layout is None:
            raise TableUnfit(f"a table of another form: path=`{file}`")
        offsets, sizes = _blocks(data, layout)
        self._verify_short(layout, offsets, sizes, file)
        keys = np.empty(layout.entries + WORDS, np.uint64)
        place = np.empty(layout.entries, np.uint32)
        anchor = np.zeros((layout.entries >> _ANCHOR_BITS) + 1, np.uint64)
        many = _index_rows(
            *(data, offsets, sizes, layout.context, row_bytes),
            *(np.zeros(_ROW_KEY, np.uint8), np.zeros(LANES, np.uint64)),
            *(keys, place, anchor),
        )
        if many < 0:
            raise TableUnfit(f"a block is not what was written: path=`{file}` reason=`{-many}`")
        keys[many : many + WORDS] = 0  # no key: what is read behind the last one
        self.keys, self._place, self._anchor = keys[:many], place[:many], anchor
        self._keys_and_end = keys[: many + WORDS]
        self._data = data
        self._starts = _range_starts(self.keys)
        self._filter = KeyFilter(self.keys) if many else None
        self._map.madvise(mmap.MADV_RANDOM)

    def __len__(self) -> int:
        """Rows and deletions of rows."""
        return len(self.keys)

    def read(
        self,
        wanted: NDArray[np.uint64],
        todo: NDArray[np.int64],
        rows: NDArray[np.uint8],
        found: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """Fill `rows` uint8[N, row_bytes] and `found` bool[N] for positions `todo` of `wanted`.

        `wanted` uint64[N] and `todo` int64[T] ascend. Returns the positions that this table knows
        nothing of. Raises TableUnfit if a row names another key than its own.
        """
        if self._filter is None:
            return todo
        asked = wanted[todo]
        first = int(np.searchsorted(asked, self.keys[0]))
        end = int(np.searchsorted(asked, self.keys[-1], side="right"))
        maybe = self._filter.passed(wanted, todo[first:end])
        if not len(maybe):
            return todo
        places, here = np.empty(len(maybe), np.uint64), np.empty(len(maybe), np.int64)
        known = _find(
            *(self._keys_and_end, self._starts, self._place, self._anchor),
            *(wanted, maybe, here, places),
        )
        here = here[:known]
        if not _copy(self._data, wanted, here, places, rows, found):
            raise TableUnfit("a row names another key than its own")
        unknown = np.empty(len(todo) - known, np.int64)
        _leave_out(todo, here, unknown)
        return unknown

    @staticmethod
    def _verify_short(
        layout: TableLayout, offsets: NDArray[np.int64], sizes: NDArray[np.int64], file: Path
    ) -> None:
        for n in np.flatnonzero(sizes < LONG):
            if not layout.is_right(int(offsets[n]), int(sizes[n])):
                raise TableUnfit(f"a block fails its checksum: path=`{file}`")


def _range_starts(keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """uint32[B + 1]; B is a power of two, at least two."""
    bits = max(1, (len(keys) // _RANGE_ROWS).bit_length())
    edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    starts = np.empty((1 << bits) + 1, np.uint32)
    starts[:-1] = np.searchsorted(keys, edges)
    starts[-1] = len(keys)
    return starts


def _blocks(
    data: NDArray[np.uint8], layout: TableLayout
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(offset, size) int64[B] of every data block."""
    offsets = np.empty(layout.blocks, np.int64)
    sizes = np.empty(layout.blocks, np.int64)
    read = _read_index(data, layout.index_offset, layout.index_size, offsets, sizes)
    if read != layout.blocks:
        raise TableUnfit(f"an index of other blocks: expected=`{layout.blocks}` came=`{read}`")
    return offsets, sizes


@njit(inline="always")
def _varint(data, at):  # type: ignore[no-untyped-def]
    """(value, behind it)"""
    value, shift = np.int64(0), 0
    while True:
        byte = np.int64(data[at])
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 56:
            return value, at


@kernel
def _read_index(data: Any, first: Any, size: Any, offsets: Any, sizes: Any) -> Any:
    """Handles of the data blocks; how many there are, -1 if it cannot be read."""
    restarts = (
        np.int64(data[first + size - 4])
        | np.int64(data[first + size - 3]) << 8
        | np.int64(data[first + size - 2]) << 16
        | np.int64(data[first + size - 1] & 0x7F) << 24
    )
    at, end, many = first, first + size - 4 - 4 * restarts, 0
    while at < end:
        if many >= offsets.shape[0]:
            return -1
        shared, at = _varint(data, at)
        rest, at = _varint(data, at)
        at += rest
        if shared == 0:
            offsets[many], at = _varint(data, at)
            sizes[many], at = _varint(data, at)
        else:  # the next block follows; only the change of its size is stored, zigzag
            change, at = _varint(data, at)
            offsets[many] = offsets[many - 1] + sizes[many - 1] + _TRAILER
            sizes[many] = sizes[many - 1] + ((change >> 1) ^ -(change & 1))
        if offsets[many] < 0 or sizes[many] < 8 or offsets[many] + sizes[many] > first:
            return -1
        many += 1
    return many


@kernel
def _is_right(data, offset, size, context, lanes):  # type: ignore[no-untyped-def]
    """Checksum of a long block, and that it is not compressed."""
    end = offset + size
    stored = (
        np.uint32(data[end + 1])
        | np.uint32(data[end + 2]) << np.uint32(8)
        | np.uint32(data[end + 3]) << np.uint32(16)
        | np.uint32(data[end + 4]) << np.uint32(24)
    )
    sum_, low = xxh3_64_long(data, offset, size, lanes), np.uint64(0xFFFFFFFF)
    if context != 0:  # wider integers than 32 bits: numba's do not wrap where Python's would not
        place = np.uint64(offset)
        sum_ = (sum_ & low) + (np.uint64(context) ^ (place + (place >> np.uint64(32)) & low))
    return data[end] == 0 and np.uint64(sum_) & low == np.uint64(stored)


@kernel
def _index_rows(  # noqa: PLR0911, PLR0912, PLR0917
    data: Any, offsets: Any, sizes: Any, context: Any, row_bytes: Any,
    name: Any, lanes: Any, keys: Any, place: Any, anchor: Any,
) -> Any:  # fmt: skip
    """Fill keys, place and anchor from the blocks; how many rows, or a negative reason. `name`
    uint8[_ROW_KEY] and `lanes` uint64[LANES] are to work in."""
    many, last = 0, np.uint64(0)
    for n in range(offsets.shape[0]):
        at, size = offsets[n], sizes[n]
        if size >= LONG and not _is_right(data, at, size, context, lanes):
            return -1
        restarts = (
            np.int64(data[at + size - 4])
            | np.int64(data[at + size - 3]) << 8
            | np.int64(data[at + size - 2]) << 16
        )
        end = at + size - 4 - 4 * restarts
        while at < end:
            shared, at = _varint(data, at)
            rest, at = _varint(data, at)
            length, at = _varint(data, at)
            kind = data[at] if shared == 0 else name[0]
            if kind > _ROW:
                return many  # records of state come after the rows
            for i in range(rest):
                if shared + i < _ROW_KEY:
                    name[shared + i] = data[at + i]
            at += rest
            if kind == _ROW:
                if shared + rest != _ROW_KEY:
                    return -2
                key = np.uint64(0)
                for i in range(1, 9):
                    key = key << np.uint64(8) | np.uint64(name[i])
                change = name[9]
                if change == 1:
                    if length != row_bytes:
                        return -3
                elif change != 0 and change != 7:  # noqa: PLR1714  numba knows no sets
                    return -4
                if many == 0 or key != last:  # else an older value of the same row
                    if many >= place.shape[0]:
                        return -5
                    if many & ((1 << _ANCHOR_BITS) - 1) == 0:
                        anchor[many >> _ANCHOR_BITS] = at
                    keys[many], last = key, key
                    offset = np.uint64(at) - anchor[many >> _ANCHOR_BITS]
                    if offset >= np.uint64(GONE):
                        return -6
                    place[many] = np.uint32(offset) if change == 1 else np.uint32(GONE)
                    many += 1
            at += length
    return many


@kernel
def _find(  # noqa: PLR0917
    keys: Any, starts: Any, place: Any, anchor: Any, wanted: Any, todo: Any,
    here: Any, places: Any,
) -> Any:  # fmt: skip
    """How many of `todo` the table knows: they are `here`, with their `places` in the file.

    `keys` goes on for WORDS words that are no keys.
    """
    bits = np.uint64(0)
    while (1 << bits) + 1 < starts.shape[0]:
        bits += np.uint64(1)
    shift, many, none = np.uint64(64) - bits, todo.shape[0], np.uint64(0)
    start_lines, key_lines = starts.reshape(-1, 1), keys.reshape(-1, 1)
    place_lines = place.reshape(-1, 1)
    read = np.int64(0)
    for step in range(many + 2 * _AHEAD):
        if step < many:
            prefetch(start_lines, np.int64(wanted[todo[step]] >> shift), 0)
        if _AHEAD <= step < many + _AHEAD:
            ahead = np.int64(starts[wanted[todo[step - _AHEAD]] >> shift])
            prefetch(key_lines, ahead, 0)
            prefetch(key_lines, ahead + WORDS - 1, 0)
            prefetch(place_lines, ahead, 0)
        if step < 2 * _AHEAD:
            continue
        n = todo[step - 2 * _AHEAD]
        key = wanted[n]
        low, high = np.int64(starts[key >> shift]), np.int64(starts[(key >> shift) + np.uint64(1)])
        found = matches(keys, np.uint64(low), key)
        if found == none and high - low > WORDS:
            low = _lower_bound(keys, low, high, key)
            found = np.uint64(keys[low] == key)
        # Whether a table has a row is anyone's guess, so nothing branches on it.
        hit = np.int64(found != none)
        at = min(low + np.int64(lowest(found | np.uint64(1 << WORDS))), place.shape[0] - 1)
        there = place[at] != np.uint32(GONE)
        here[read] = n
        places[read] = (anchor[at >> _ANCHOR_BITS] + np.uint64(place[at])) * np.uint64(there)
        read += hit
    return read


@kernel
def _leave_out(todo: Any, known: Any, unknown: Any) -> None:
    """`unknown` = `todo` without `known`; all ascend."""
    n = 0
    for i in range(todo.shape[0]):
        if n < known.shape[0] and known[n] == todo[i]:
            n += 1
        else:
            unknown[i - n] = todo[i]


@kernel
def _lower_bound(keys: Any, low: Any, high: Any, key: Any) -> Any:
    """The first place from `low` on, `high` at most, whose key is not below `key`: for keys that
    are no hashes, of which a range may hold many."""
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _copy(  # noqa: PLR0917
    data: Any, wanted: Any, here: Any, places: Any, rows: Any, found: Any
) -> Any:
    """Values to `rows`; False if one is not the row of its key."""
    size, lines, flat = rows.shape[1], data.reshape(-1, 1), rows.reshape(-1)
    for i in range(here.shape[0] + _AHEAD):
        if i < here.shape[0]:
            for line in range(0, size + 63, 64):
                prefetch(lines, np.int64(places[i]) + line, 0)
        if i < _AHEAD:
            continue
        n, at = here[i - _AHEAD], np.int64(places[i - _AHEAD])
        found[n] = at != 0
        if at == 0:
            continue
        copy_bytes(flat, n * size, data, at, size)
        named = np.uint64(0)
        for b in range(8):
            named |= np.uint64(rows[n, b]) << np.uint64(8 * b)
        if named != wanted[n]:
            return False
    return True

"""Checks RocksDB's table files (SST) block by block, without RocksDB: every byte of the file.

RocksDB verifies a block when it reads it, so a damaged filter or property is never seen, and it
names an offset. Here every byte must belong to a block with a right checksum, and what a damaged
data block held is told as a range of keys. The format (block-based tables, version 6):

    blocks, each: data | compression, 1 B | checksum, 4 B
    footer, 53 B: checksum type | magic, checksum, context, size of the meta index | version | magic

The meta index, the last block, names the index and the other blocks that hold no rows; the index
names each data block after the last key in it. A checksum is the low half of XXH3-64, changed by
the compression byte, the block's offset and the file's context, so that no block passes in
another's place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

_MAGIC: Final = 0x88E241B785F4CFF7
_EXTENDED_MAGIC: Final = b"\x3e\x00\x7a\x00"
_VERSION: Final = 6
_XXH3: Final = 4
_FOOTER: Final = 53
_TRAILER: Final = 5
_LAST_BYTE_PRIME: Final = 0x6B9083D9
_M32: Final = 0xFFFFFFFF
_INDEX: Final = b"rocksdb.index"
_PROPERTIES: Final = b"rocksdb.properties"


@dataclass(frozen=True, slots=True)
class TableFault:
    """A block that is not what was written. `after` < lost keys <= `until`; None = all keys."""

    offset: int
    reason: str
    after: bytes | None = None
    until: bytes | None = None


@dataclass(frozen=True, slots=True)
class TableCheck:
    """`blocks` were right. `known` is False for a table of another format, or with compression:
    its rows were not checked."""

    blocks: int
    faults: tuple[TableFault, ...] = ()
    known: bool = True


@dataclass(frozen=True, slots=True)
class _Block:
    offset: int
    size: int
    """Without the trailer."""


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Where a table's data blocks are told, and what their checksums are changed by."""

    index_offset: int
    index_size: int
    blocks: int
    entries: int
    context: int
    is_right: Callable[[int, int], bool]
    """Whether the block at (offset, size) passes its checksum and is not compressed."""


class _Damaged(Exception):
    def __init__(self, offset: int, reason: str) -> None:
        self.fault = TableFault(offset, reason)


def check_table(file: Path) -> TableCheck:
    """Read the whole file. Raises OSError."""
    data = memoryview(file.read_bytes())
    try:
        return _Table(data).check()
    except _Damaged as damaged:
        return TableCheck(0, (damaged.fault,))
    except (IndexError, ValueError, struct.error) as error:  # a right checksum over nonsense
        return TableCheck(0, (TableFault(0, f"cannot be read: {error}"),))


def read_layout(data: memoryview) -> TableLayout | None:
    """Of a whole file; None if it is damaged, or of a form that not every reader of ours knows."""
    try:
        return _Table(data).layout()
    except (_Damaged, IndexError, ValueError, KeyError, struct.error):
        return None


class _Table:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._footer_at = len(data) - _FOOTER
        self._context = 0
        self._blocks = 0

    def check(self) -> TableCheck:
        meta = self._footer()
        if meta is None:
            return TableCheck(0, known=False)
        names = dict(_entries(self._verified(meta)))
        blocks = {name: _Block(*_two_varints(handle)) for name, handle in names.items()}
        faults = [fault for name, b in blocks.items() if (fault := self._fault(b, name.decode()))]
        index = blocks.get(_INDEX)
        if index is None or any(fault.offset == index.offset for fault in faults):
            return TableCheck(self._blocks, tuple(faults))
        if self._data[index.offset + index.size]:  # compressed, which our tables are not
            return TableCheck(self._blocks, tuple(faults), known=False)
        after: bytes | None = None
        rows = list(self._rows(index, self._strips_sequence(blocks, faults)))
        for last, block in rows:
            fault = self._fault(block, "data")
            if fault is not None:
                faults.append(TableFault(fault.offset, fault.reason, after, last))
            after = last
        faults += self._gaps([meta, *blocks.values(), *(block for _, block in rows)])
        return TableCheck(self._blocks, tuple(faults))

    def layout(self) -> TableLayout | None:
        """Raises _Damaged, IndexError, ValueError, KeyError, struct.error."""
        meta = self._footer()
        if meta is None:
            return None
        names = dict(_entries(self._verified(meta)))
        index = _Block(*_two_varints(names[_INDEX]))
        told = _Block(*_two_varints(names[_PROPERTIES]))
        found = dict(_entries(self._verified(told)))
        self._verified(index)
        if self._data[index.offset + index.size] or _count(found, "num.range-deletions"):
            return None
        return TableLayout(
            index_offset=index.offset,
            index_size=index.size,
            blocks=_count(found, "num.data.blocks"),
            entries=_count(found, "num.entries"),
            context=self._context,
            is_right=lambda offset, size: (
                self._fault(_Block(offset, size), "data") is None and not self._data[offset + size]
            ),
        )

    def _footer(self) -> _Block | None:
        """The meta index' place; None for a table of another format."""
        if self._footer_at < 0:
            raise _Damaged(0, f"shorter than a footer: bytes=`{len(self._data)}`")
        footer = bytes(self._data[self._footer_at :])
        kind, extended = footer[0], footer[1:5]
        checksum, self._context, size = struct.unpack_from("<III", footer, 5)
        version, magic = struct.unpack_from("<IQ", footer, 41)
        signs = (magic == _MAGIC, extended == _EXTENDED_MAGIC, version == _VERSION, kind == _XXH3)
        if sum(signs) < 3:  # a flipped bit breaks one of them
            if magic == _MAGIC and not signs[1]:
                return None  # an older or newer version than ours
            raise _Damaged(self._footer_at, "the footer is not one: cut off, or damaged")
        zeroed = footer[:5] + bytes(4) + footer[9:]
        expected = (xxhash.xxh3_64_intdigest(zeroed[:-1]) & _M32) ^ _last_byte(zeroed[-1])
        if (expected + self._modifier(self._footer_at)) & _M32 != checksum:
            raise _Damaged(self._footer_at, "the footer fails its checksum")
        return _Block(self._footer_at - _TRAILER - size, size)

    def _modifier(self, offset: int) -> int:
        if self._context == 0:
            return 0
        return self._context ^ ((offset + (offset >> 32)) & _M32)

    def _fault(self, block: _Block, name: str) -> TableFault | None:
        end = block.offset + block.size
        if block.offset < 0 or end + _TRAILER > self._footer_at:
            return TableFault(max(0, block.offset), f"a {name} block outside of the file")
        data = self._data[block.offset : end]
        stored = int.from_bytes(self._data[end + 1 : end + _TRAILER], "little")
        expected = (xxhash.xxh3_64_intdigest(data) & _M32) ^ _last_byte(self._data[end])
        if (expected + self._modifier(block.offset)) & _M32 != stored:
            return TableFault(block.offset, f"a {name} block fails its checksum")
        self._blocks += 1
        return None

    def _verified(self, block: _Block) -> memoryview:
        fault = self._fault(block, "meta index")
        if fault is not None:
            raise _Damaged(fault.offset, fault.reason)
        return self._data[block.offset : block.offset + block.size]

    def _strips_sequence(self, blocks: dict[bytes, _Block], faults: list[TableFault]) -> bool:
        """Are the index' keys the users', or followed by RocksDB's eight bytes?"""
        place = blocks.get(_PROPERTIES)
        if place is None or any(fault.offset == place.offset for fault in faults):
            return False
        found = dict(_entries(self._data[place.offset : place.offset + place.size]))
        return found.get(b"rocksdb.index.key.is.user.key", b"\x01") == b"\x00"

    def _rows(self, index: _Block, internal: bool) -> Iterator[tuple[bytes, _Block]]:
        """(last key or a separator behind it, data block) in order."""
        data = self._data[index.offset : index.offset + index.size]
        end = len(data) - 4 - 4 * (int.from_bytes(data[-4:], "little") & 0x7FFFFFFF)
        at, key, block = 0, b"", _Block(0, 0)
        while at < end:
            shared, at = _varint(data, at)
            rest, at = _varint(data, at)
            key = key[:shared] + bytes(data[at : at + rest])
            at += rest
            if shared == 0:
                offset, at = _varint(data, at)
                size, at = _varint(data, at)
                block = _Block(offset, size)
            else:  # the next one follows; only the change of its size is stored, zigzag
                change, at = _varint(data, at)
                size = block.size + ((change >> 1) ^ -(change & 1))
                block = _Block(block.offset + block.size + _TRAILER, size)
            yield (key[:-8] if internal else key), block

    def _gaps(self, blocks: list[_Block]) -> Iterator[TableFault]:
        at = 0
        for block in sorted(blocks, key=lambda b: b.offset):
            if block.offset != at:
                yield TableFault(at, "bytes that belong to no block")
            at = block.offset + block.size + _TRAILER
        if at != self._footer_at:
            yield TableFault(at, "bytes that belong to no block")


def _count(properties: dict[bytes, bytes], name: str) -> int:
    return _varint(memoryview(properties[f"rocksdb.{name}".encode()]), 0)[0]


def _last_byte(value: int) -> int:
    return (value * _LAST_BYTE_PRIME) & _M32


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _two_varints(handle: bytes) -> tuple[int, int]:
    data = memoryview(handle)
    first, at = _varint(data, 0)
    return first, _varint(data, at)[0]


def _entries(block: memoryview) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block whose keys share prefixes."""
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + bytes(block[at : at + rest])
        yield key, bytes(block[at + rest : at + rest + length])
        at += rest + length

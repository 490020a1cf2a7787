"""A store, or a checkpoint, as its last commit left it: read, and nothing written.

For tools and exports. Whoever reads a closed store holds its lock, so that no trainer opens it
meanwhile; a checkpoint never changes and needs none. A live store is refused (StoreLocked): what it
holds in memory is on no disk, and its newest checkpoint answers the same questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedding_store.audit import LAYOUT_NAME
from embedding_store.commit import COMMIT_NAME, decode_record
from embedding_store.errors import StoreCorrupt, StoreMisuse, StoreUnreadable
from embedding_store.layout import RowLayout
from embedding_store.owner import OwnerLock
from embedding_store.rocks import ROW_PREFIX, Rocks, row_names
from embedding_store.row import HEADER, Headers, RowFormat, header_records
from embedding_store.state import STATE_PREFIX

DATABASE: Final = "rocks"
CHECKPOINT_FILE: Final = "checkpoint.json"
BLOCK_ROWS: Final = 8192


class StoreReader:
    """The last commit of one store. Close it, or use it in a `with`."""

    def __init__(self, path: Path, owner: str) -> None:
        """Raises StoreUnreadable, StoreLocked, StoreCorrupt, LayoutMismatch."""
        self.path = Path(path)
        database = self.path / DATABASE
        if not (database / "CURRENT").is_file():
            raise StoreUnreadable(f"no store and no checkpoint here: path=`{self.path}`")
        is_checkpoint = (self.path / CHECKPOINT_FILE).exists()
        self._lock = None if is_checkpoint else OwnerLock(self.path, owner)
        try:
            self._rocks = Rocks(database, read_only=True)
            stored, commit = self._rocks.get_many([LAYOUT_NAME, COMMIT_NAME])
            if stored is None or commit is None:
                raise StoreCorrupt(f"no layout or no commit record: path=`{self.path}`")
            self.layout = RowLayout.from_json(stored)
            self.record = decode_record(commit)
        except BaseException:
            self.close()
            raise
        self.form = RowFormat(self.layout)

    def records(self, after: int = 0) -> Iterator[NDArray[np.void]]:
        """Rows above the key `after` in order of key, as blocks of structured [N] (`form.dtype`).

        Raises StoreCorrupt for a row of a wrong size.
        """
        block: list[bytes] = []
        for name, data in self._rocks.scan(ROW_PREFIX, after=_name(after)):
            if len(data) != self.form.bytes:
                raise StoreCorrupt(f"a row of a wrong size: key=`0x{name[1:].hex()}`")
            block.append(data)
            if len(block) == BLOCK_ROWS:
                yield self._structured(block)
                block = []
        if block:
            yield self._structured(block)

    def rows(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """(rows structured [F] of the keys that exist, in order; found bool[N])."""
        words, found = self._rocks.get_rows(keys, self.form.words)
        return self.form.records(words), found

    def headers_after(self, key: int, limit: int) -> tuple[Headers, int | None]:
        """What a sweep asks for; see `expiry.Sweepable`."""
        found = islice(self._rocks.scan(ROW_PREFIX, after=_name(key)), limit)
        headers = header_records(data for _, data in found)
        return headers, int(headers["key"][-1]) if len(headers) == limit else None

    def drop(self, keys: NDArray[np.uint64]) -> None:
        """A reader deletes nothing."""
        raise StoreMisuse(f"opened for reading: keys=`{len(keys)}`")

    def vectors(self, set_name: str, records: NDArray[np.void]) -> NDArray[np.float32]:
        """The set's vectors float32[N, D] of `records` [N]; zeros where a row's slot lacks it."""
        words = records.view(np.float32).reshape(len(records), self.form.words)
        return self.form.vectors(set_name, words)

    def state(self) -> Iterator[tuple[str, bytes, bytes]]:
        """(space, key, value) of every record of durable state, in order."""
        for name, value in self.raw_state():
            space, _, key = name[1:].partition(b"\0")
            yield space.decode(), key, value

    def raw_state(self) -> Iterator[tuple[bytes, bytes]]:
        """The same under the database's own keys."""
        return self._rocks.scan(STATE_PREFIX)

    def state_sizes(self) -> dict[str, dict[str, int]]:
        """Space -> {records, bytes}."""
        records: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for space, key, value in self.state():
            records[space] += 1
            size[space] += len(key) + len(value)
        return {space: {"records": records[space], "bytes": size[space]} for space in records}

    def disk_bytes(self) -> int:
        """Of every file below the store's directory."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())

    def close(self) -> None:
        """Let go of the files and the lock. Idempotent."""
        with suppress(AttributeError):
            self._rocks.close()
        if self._lock is not None:
            self._lock.release()

    def _structured(self, block: list[bytes]) -> NDArray[np.void]:
        return np.frombuffer(b"".join(block), self.form.dtype)

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def header_of(record: Any) -> dict[str, int]:
    """A row's header as plain numbers."""
    return {name: int(record[name]) for name, _ in HEADER if name != "flags"}


def _name(key: int) -> bytes:
    return row_names(np.array([key], np.uint64))[0]

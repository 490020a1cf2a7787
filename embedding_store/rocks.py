"""RocksDB: how it is opened, read and written. The only file that imports rocksdict.

One column family, told apart by the key's first byte: a batch is atomic over all of them, and every
handle closes with the database.

    "r" + key, big-endian uint64   a row (row.py)
    "s" + space + "\\0" + key       a record of durable state (state.py)
    "m" + name                     the store's own: layout, newest commit

rocksdict raises bare `Exception` with RocksDB's status as text; this file turns it into our errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import rocksdict
from numpy.typing import NDArray

from embedding_store.errors import StoreCorrupt, StoreError, StoreLocked, StoreUnreadable

ROW_PREFIX: Final = b"r"
MEMTABLE_BYTES: Final = 64 << 20
WAL_BYTES_MAX: Final = 256 << 20
BLOOM_BITS_PER_KEY: Final = 10

T = TypeVar("T")
Write = tuple[bytes, bytes | None]
"""(key, value), or (key, None) = delete."""


class Rocks:
    """An open database. Reads and writes raise StoreCorrupt or StoreUnreadable."""

    def __init__(self, directory: Path, *, statistics: bool = False) -> None:
        """Open, creating it if absent. `statistics` counts what the filters save (costs ~5 %)."""
        self._options = _options(statistics=statistics)
        # Given without column_families, RocksDB takes these options from the file that the last
        # run left, and the bloom filter does not survive that: every new key would read the disk.
        self._db: rocksdict.Rdict = _mapped(
            f"open path=`{directory}`",
            lambda: rocksdict.Rdict(
                str(directory), self._options, column_families={"default": self._options}
            ),
        )
        self._synced = rocksdict.WriteOptions()
        self._synced.sync = True

    def get(self, key: bytes) -> bytes | None:
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of `keys`, None where absent. Fastest when `keys` are sorted."""
        values: Any = _mapped("read", lambda: self._db.get(list(keys)))
        return cast("list[bytes | None]", values)

    def get_rows(
        self, keys: NDArray[np.uint64], words: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(rows float32[F, words] of the keys that exist, in order; found bool[N])."""
        order = np.argsort(keys)
        values = self.get_many(row_names(keys[order]))
        found = np.empty(len(keys), np.bool_)
        found[order] = np.fromiter((v is not None for v in values), np.bool_, len(keys))
        there = [value for value in values if value is not None]
        joined = b"".join(there)
        expected = keys[order][found[order]]
        if len(joined) != 4 * words * len(there):
            raise StoreCorrupt(f"rows of a wrong size: bytes=`{len(joined)}` rows=`{len(there)}`")
        in_key_order = np.frombuffer(joined, np.float32).reshape(len(there), words)
        named = in_key_order[:, :2].copy().view(np.uint64).ravel()
        if not np.array_equal(named, expected):
            wrong = int(expected[np.flatnonzero(named != expected)[0]])
            raise StoreCorrupt(f"a row names another key than its own: key=`{wrong:#018x}`")
        rows = np.empty_like(in_key_order)
        rows[np.argsort(keys[found])] = in_key_order
        return rows, found

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in order of key, as of the call. Verifies every block's checksum."""
        reading = rocksdict.ReadOptions()
        cursor = _mapped("scan", lambda: self._db.iter(reading))
        cursor.seek(prefix)
        while cursor.valid():
            key: bytes = cursor.key()
            if not key.startswith(prefix):
                return
            yield key, cursor.value()
            cursor.next()
        _mapped("scan", cursor.status)  # an iterator that met a bad block just ends

    def write(self, writes: Iterable[Write]) -> None:
        """All or nothing, in the order given (sort it: half the time); returns after fsync."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in writes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        _mapped("write", lambda: self._db.write(batch, self._synced))

    def checkpoint(self, target: Path) -> None:
        """A copy by hard links in `target`, which must not exist; holds every finished write."""
        _mapped(
            f"checkpoint target=`{target}`",
            lambda: rocksdict.Checkpoint(self._db).create_checkpoint(str(target)),
        )

    def flush(self) -> None:
        """Memtable to a table file; durability does not need it, `checkpoint` does it itself."""
        _mapped("flush", self._db.flush)

    def property(self, name: str) -> str:
        """RocksDB's own property text ("rocksdb.aggregated-table-properties"), or ""."""
        return self._db.property_value(name) or ""

    def statistics(self) -> str:
        return self._options.get_statistics() or ""

    def close(self) -> None:
        """Writes the memtable to a table file first, so the next opening replays no log."""
        _mapped("close", self._db.close)


def row_names(keys: NDArray[np.uint64]) -> list[bytes]:
    """Database keys of rows; in order of value, since big-endian."""
    names = np.empty((len(keys), 9), np.uint8)
    names[:, 0] = ROW_PREFIX[0]
    names[:, 1:] = keys.astype(">u8").view(np.uint8).reshape(-1, 8)
    listed: list[bytes] = names.view("V9").ravel().tolist()  # not S9: that strips zero bytes
    return listed


def _options(*, statistics: bool) -> rocksdict.Options:
    table = rocksdict.BlockBasedOptions()
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    table.set_block_size(4096)
    table.disable_cache()  # the slab is the cache; a block cache only costs
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(rocksdict.DBCompressionType.none())  # floats do not compress
    options.set_write_buffer_size(MEMTABLE_BYTES)
    options.set_max_total_wal_size(WAL_BYTES_MAX)
    options.set_max_background_jobs(2)
    options.set_paranoid_checks(True)
    # A torn last record is what a crash leaves. Any other damage to the log must refuse to open
    # instead of dropping commits that were acknowledged, as RocksDB's default would.
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_keep_log_file_num(4)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    if statistics:
        options.enable_statistics()
    return options


def _mapped(doing: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:  # rocksdict has no narrower type
        raise _our_error(doing, error) from error


def _our_error(doing: str, error: Exception) -> StoreError:
    text = str(error)
    if "lock hold by current process" in text or "While lock file" in text:
        return StoreLocked(Path(), "unknown", -1)
    if text.startswith("Corruption"):
        return StoreCorrupt(f"{doing}: {text}")
    return StoreUnreadable(f"{doing}: {text}")

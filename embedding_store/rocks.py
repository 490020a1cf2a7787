"""RocksDB: how it is opened, read and written. The only file that imports rocksdict.

One column family, told apart by the key's first byte: a batch is atomic over all of them, and every
handle closes with the database.

    "r" + key, big-endian uint64   a row (row.py)
    "s" + space + "\\0" + key       a record of durable state (state.py)
    "m" + name                     the store's own: layout, newest commit

rocksdict raises bare `Exception` with RocksDB's status as text; this file turns it into our errors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import numpy as np
import rocksdict
from numpy.typing import NDArray

from embedding_store.errors import StoreCorrupt, StoreError, StoreLocked, StoreUnreadable

ROW_PREFIX: Final = b"r"
MEMTABLE_BYTES: Final = 64 << 20
WAL_BYTES_MAX: Final = 256 << 20
BLOOM_BITS_PER_KEY: Final = 10
SORTED_RUNS_MAX: Final = 24
"""Tables that each span all keys; more are merged. A look-up asks each one, which is cheap
(mapped_table.py), and merging is not: with 8 it took more than the second core beside a training
that changes 600,000 rows a second. What more runs cost is space: rows of every run, and 14 to 15
bytes of memory each. Merging runs at the trainer's own priority: at a lower one a busy machine left
it no time, and runs piled up."""

READERS: Final = {"mmap": 2, "direct": 64}
"""Threads that read one batch. Mapped files cost only time of a core; on the disk itself, queue
depth is throughput, and RocksDB has no other source of it than threads."""
KEYS_PER_READER_MIN: Final = {"mmap": 1024, "direct": 16}

Reads = Literal["auto", "mmap", "direct"]
T = TypeVar("T")
Write = tuple[bytes, bytes | None]
"""(key, value), or (key, None) = delete."""


class Rocks:
    """An open database. Reads and writes raise StoreCorrupt or StoreUnreadable."""

    def __init__(
        self,
        directory: Path,
        *,
        statistics: bool = False,
        reads: Reads = "auto",
        read_only: bool = False,
    ) -> None:
        """Open, creating it if absent. `statistics` counts what the filters save (costs ~5 %).

        `reads`: "mmap" maps the tables, fastest while they fit in memory; "direct" passes the page
        cache by, for stores far larger than it; "auto" chooses by the size at opening.
        `read_only` changes no file, and needs the database to be there.
        """
        self._directory = directory
        self.reads = _fitting_reads(directory) if reads == "auto" else reads
        self._readers: ThreadPoolExecutor | None = None
        access = (
            rocksdict.AccessType.read_only() if read_only else rocksdict.AccessType.read_write()
        )
        self._options = _options(statistics=statistics)
        self._options.set_allow_mmap_reads(self.reads == "mmap")
        self._options.set_use_direct_reads(self.reads == "direct")
        # Given without column_families, RocksDB takes these options from the file that the last
        # run left, and the bloom filter does not survive that: every new key would read the disk.
        self._db: rocksdict.Rdict = _mapped(
            f"open path=`{directory}`",
            lambda: rocksdict.Rdict(
                str(directory),
                self._options,
                column_families={"default": self._options},
                access_type=access,
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
        in_order = keys[order]
        values = self._get_spread(row_names(in_order))
        if None in values:
            found_in_order = np.fromiter((v is not None for v in values), np.bool_, len(values))
            values = [value for value in values if value is not None]
        else:
            found_in_order = np.ones(len(keys), np.bool_)
        joined = b"".join(cast("list[bytes]", values))
        expected = in_order[found_in_order]
        if len(joined) != 4 * words * len(values):
            raise StoreCorrupt(f"rows of a wrong size: bytes=`{len(joined)}` rows=`{len(values)}`")
        read = np.frombuffer(joined, np.float32).reshape(len(values), words)
        named = read[:, :2].copy().view(np.uint64).ravel()
        if not np.array_equal(named, expected):
            wrong = int(expected[np.flatnonzero(named != expected)[0]])
            raise StoreCorrupt(f"a row names another key than its own: key=`{wrong:#018x}`")
        found = np.empty(len(keys), np.bool_)
        found[order] = found_in_order
        rows = np.empty_like(read)
        rows[(np.cumsum(found) - 1)[order[found_in_order]]] = read
        return rows, found

    def _get_spread(self, names: list[bytes]) -> list[bytes | None]:
        """`get_many` of sorted `names` by several threads; RocksDB reads without Python's lock."""
        threads = min(READERS[self.reads], len(names) // KEYS_PER_READER_MIN[self.reads])
        if threads < 2:
            return self.get_many(names)
        if self._readers is None:
            self._readers = ThreadPoolExecutor(READERS[self.reads], thread_name_prefix="store-read")
        share = -(-len(names) // threads)
        parts = [names[first : first + share] for first in range(0, len(names), share)]
        values: list[bytes | None] = []
        for part in self._readers.map(self.get_many, parts):
            values += part
        return values

    def scan(self, prefix: bytes, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in order of key, those above `after`, as of the call. Verifies every
        block's checksum."""
        reading = rocksdict.ReadOptions()
        cursor = _mapped("scan", lambda: self._db.iter(reading))
        cursor.seek(max(prefix, after + b"\0"))
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

    def ingest(self, table: Path) -> None:
        """Take in a table from `write_table`, all of it or nothing, newer than all that is here.

        Returns when RocksDB's list of tables names it durably; `table` is moved. The memtable is
        flushed before, since that lets go of Python's lock and the taking-in does not.
        """
        if not self.log_is_empty:
            self.flush()
        taking = rocksdict.IngestExternalFileOptions()
        taking.set_move_files(True)
        _mapped("ingest", lambda: self._db.ingest_external_file([str(table)], taking))

    def checkpoint(self, target: Path) -> None:
        """A copy by hard links in `target`, which must not exist; holds every finished write."""
        _mapped(
            f"checkpoint target=`{target}`",
            lambda: rocksdict.Checkpoint(self._db).create_checkpoint(str(target)),
        )

    def live_tables(self) -> list[Path]:
        """Table files, newest content first: of two that hold a key, the first one counts."""
        live = _mapped("list tables", self._db.live_files)
        return [self._directory / f["name"].lstrip("/") for f in live]

    @property
    def log_is_empty(self) -> bool:
        """Whether everything written is in tables, and nothing of it only in memory and the log."""
        names = ("num-entries-active-mem-table", "num-immutable-mem-table")
        return not any(int(self.property(f"rocksdb.{name}") or "1") for name in names)

    def table_ranges(self) -> dict[str, tuple[bytes, bytes]]:
        """File name of each live table -> (first, last) key in it."""
        live = _mapped("list tables", self._db.live_files)
        return {f["name"].lstrip("/"): (f["start_key"], f["end_key"]) for f in live}

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
        if self._readers is not None:
            self._readers.shutdown()
        _mapped("close", self._db.close)

    def __enter__(self) -> Rocks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except StoreError:
            if kind is None:
                raise  # otherwise it repeats, without the reason, what was refused before


def write_table(file: Path, writes: Iterable[Write]) -> int:
    """A table file of `writes`, sorted by key, ready for `ingest`; its bytes.

    RocksDB's writer syncs it, and drops it from the page cache unless `kept_pages.py` keeps it
    there. Raises StoreError or OSError.
    """
    writer = rocksdict.SstFileWriter(_options(statistics=False))

    def write() -> None:
        writer.open(str(file))
        for key, value in writes:
            if value is None:
                del writer[key]
            else:
                writer[key] = value
        writer.finish()

    _mapped(f"build a table path=`{file}`", write)
    return file.stat().st_size


def row_names(keys: NDArray[np.uint64]) -> list[bytes]:
    """Database keys of rows; in order of value, since big-endian."""
    names = np.empty((len(keys), 9), np.uint8)
    names[:, 0] = ROW_PREFIX[0]
    names[:, 1:] = keys.astype(">u8").view(np.uint8).reshape(-1, 8)
    listed: list[bytes] = names.view("V9").ravel().tolist()  # not S9: that strips zero bytes
    return listed


def _fitting_reads(directory: Path) -> Literal["mmap", "direct"]:
    """Mapped, unless the tables would not fit in half of this machine's memory."""
    tables = sum(file.stat().st_size for file in directory.glob("*.sst"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return "mmap" if tables < memory / 2 else "direct"


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
    # Every commit is a run over all keys. Levels would rewrite the largest one for every few of
    # them; merging runs of like size writes each row 2-3 times, whatever the store's size.
    options.set_compaction_style(rocksdict.DBCompactionStyle.universal())
    options.set_level_zero_file_num_compaction_trigger(SORTED_RUNS_MAX)
    options.set_level_zero_slowdown_writes_trigger(4 * SORTED_RUNS_MAX)
    options.set_level_zero_stop_writes_trigger(8 * SORTED_RUNS_MAX)
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
    # Mapped reading finds a truncated file by its length, and calls that an error of the disk.
    if text.startswith("Corruption") or "larger than file length" in text:
        return StoreCorrupt(f"{doing}: {text}")
    return StoreUnreadable(f"{doing}: {text}")

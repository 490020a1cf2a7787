"""Rows read from mapped tables are RocksDB's own, whatever the tables hold."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedding_store.cold_rows import ColdRows
from embedding_store.errors import StoreCorrupt
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.mapped_table import MappedTable, TableUnfit
from embedding_store.rocks import SORTED_RUNS_MAX, Rocks, Write, row_names, write_table
from embedding_store.row import RowFormat
from embedding_store.store import EmbeddingStore
from embedding_store.xxh3 import LANES, LONG, xxh3_64_long

WORDS = 7
LAYOUT = RowLayout({"shared": SetSpec(dim=3, optimizer="sgd", lr=0.1)})

# Hashes, as keys are; and numbers close together, which all begin alike.
KEYS = st.one_of(st.integers(1, 2**64 - 1), st.integers(1, 60))


@given(st.integers(LONG, 5000), st.integers(0, 70), st.integers(0, 2**32))
def test_the_checksum_is_the_librarys(length: int, first: int, seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, first + length).astype(np.uint8)
    ours = int(xxh3_64_long(data, first, length, np.empty(LANES, np.uint64)))
    assert ours == xxhash.xxh3_64_intdigest(data[first:].tobytes())


def _row(key: int, version: int) -> bytes:
    row = np.full(WORDS, version, np.float32)
    row[:2] = np.array([key], np.uint64).view(np.float32)
    return row.tobytes()


def _name(key: int) -> bytes:
    return row_names(np.array([key], np.uint64))[0]


def _same(cold: ColdRows, rocks: Rocks, keys: NDArray[np.uint64]) -> None:
    rows, found = cold.read(keys)
    expected, there = rocks.get_rows(keys, WORDS)
    np.testing.assert_array_equal(found, there)
    np.testing.assert_array_equal(rows.view(np.uint32), expected.view(np.uint32))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.booleans(), st.dictionaries(KEYS, st.booleans(), max_size=400)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_reads_what_rocksdb_reads(
    tmp_path_factory: pytest.TempPathFactory,
    commits: list[tuple[bool, dict[int, bool]]],
    waits: bool,
) -> None:
    """Commits as tables and through the log, rows and deletions of rows, in any order."""
    folder = tmp_path_factory.mktemp("cold")
    asked = {1, 7, 2**64 - 1}
    with Rocks(folder / "rocks") as rocks:
        cold = ColdRows(rocks, WORDS)
        for version, (as_table, changes) in enumerate(commits):
            asked |= set(changes)
            writes: list[Write] = [(b"mcommit", b"%d" % version)]
            for key in sorted(changes):
                writes.append((_name(key), _row(key, version) if changes[key] else None))
            writes.append((b"sspace\0" + b"long" * 40, b"state" * version))
            if as_table:
                table = folder / "table"
                write_table(table, writes)
                with cold.taking_in(table):
                    rocks.ingest(table)
            else:
                with cold.logging(np.array(sorted(changes), np.uint64)):
                    rocks.write(writes)
            if waits:
                cold.wait_indexed()
                assert cold.mapped
            _same(cold, rocks, np.array(sorted(asked), np.uint64))
        cold.wait_indexed()
        assert cold.mapped
        _same(cold, rocks, np.array(list(asked), np.uint64))
        cold.close()


def test_a_merge_beneath_changes_nothing_and_its_files_are_let_go(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    every = np.unique(random.integers(1, 2**63, 30_000).astype(np.uint64))
    with Rocks(tmp_path / "rocks") as rocks:
        cold = ColdRows(rocks, WORDS)
        for version in range(SORTED_RUNS_MAX + 4):
            some = every[random.random(len(every)) < 0.3]
            write_table(
                tmp_path / "table", [(_name(int(key)), _row(int(key), version)) for key in some]
            )
            with cold.taking_in(tmp_path / "table"):
                rocks.ingest(tmp_path / "table")
            _same(cold, rocks, random.permutation(every))
        _until_merged(rocks)
        cold.wait_indexed()
        live = {file.stat().st_ino for file in rocks.live_tables()}
        assert cold.mapped and {inode for _, inode in cold.tables()} == live
        _same(cold, rocks, every)
        cold.close()


def _until_merged(rocks: Rocks) -> None:
    """RocksDB merges in a thread of its own, when it comes to it."""
    ends = time.monotonic() + 120
    while len(rocks.live_tables()) >= SORTED_RUNS_MAX or any(
        rocks.property(f"rocksdb.{name}") != "0"
        for name in ("num-running-compactions", "compaction-pending")
    ):
        assert time.monotonic() < ends, "RocksDB merged nothing: the test shows nothing"
        time.sleep(0.01)


def test_a_flipped_bit_is_left_to_rocksdb_which_names_it(tmp_path: Path) -> None:
    keys = np.arange(1, 2001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    with EmbeddingStore.open(
        tmp_path, LAYOUT, cache_rows_max=5000, owner="test", table_rows_min=1
    ) as store:
        store.lookup(keys, now_ms=0)
        store.commit()
    file = max((tmp_path / "rocks").glob("*.sst"), key=lambda file: file.stat().st_size)
    row_bytes = RowFormat(LAYOUT).bytes
    assert len(MappedTable(file, row_bytes)) == len(keys)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)
    with pytest.raises(TableUnfit):
        MappedTable(file, row_bytes)
    store = EmbeddingStore.open(tmp_path, LAYOUT, cache_rows_max=5000, owner="test")
    with pytest.raises(StoreCorrupt):
        store.peek(keys, "shared")
    store.close()


def test_a_row_of_another_size_or_key_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "size", [(_name(5), _row(5, 1) + b"more")])
    with pytest.raises(TableUnfit):
        MappedTable(tmp_path / "size", 4 * WORDS)
    write_table(tmp_path / "key", [(_name(5), _row(6, 1))])
    table = MappedTable(tmp_path / "key", 4 * WORDS)
    with pytest.raises(TableUnfit):
        table.read(
            np.array([5], np.uint64),
            np.arange(1),
            np.empty((1, 4 * WORDS), np.uint8),
            np.zeros(1, np.bool_),
        )

"""A commit's table is in memory when it is built: its rows have just left the slab."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest

from embedding_store.builder import TableBuilder
from embedding_store.commit import FIRST, Changes, next_record, writes_of
from embedding_store.rocks import write_table

ROWS, WORDS = 50_000, 24


def _changes(rows: np.ndarray) -> Changes:
    rows[:] = 1
    rows.view(np.uint64)[:, 0] = np.arange(1, ROWS + 1)
    return Changes(rows, np.empty(0, np.uint64), [])


def _resident(file: Path) -> float:
    """The share of its pages that are in memory."""
    system = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    told = system.mincore(
        ctypes.c_void_p(start), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)
    )
    assert told == 0, ctypes.get_errno()
    return float((pages & 1).mean())


def test_the_builder_keeps_in_memory_what_rocksdb_would_drop(tmp_path: Path) -> None:
    ordered = _changes(np.empty((ROWS, WORDS), np.float32)).sorted()
    dropped = tmp_path / "dropped.sst"
    table_bytes = write_table(dropped, writes_of(next_record(FIRST, ordered, ROWS), ordered))
    if _resident(dropped) > 0.9:
        pytest.skip("this file system lives in memory")
    builder = TableBuilder(tmp_path / "building")
    try:
        kept, _, kept_bytes = builder.build(_changes(builder.place(ROWS, WORDS)), FIRST, ROWS)
        assert kept_bytes == table_bytes > 4 * ROWS * WORDS
        assert _resident(kept) == 1.0
    finally:
        builder.close()

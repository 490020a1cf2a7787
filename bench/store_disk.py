"""What the disk itself gives: random 4 KiB reads past the page cache, at several depths."""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

BLOCK = 4096
DEPTHS = (32, 64, 128)
READS_PER_DEPTH = 12_000


def best_reads_per_second(file: Path) -> float:
    """The best of DEPTHS on random blocks of `file`."""
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        return max(_reads_per_second(descriptor, depth) for depth in DEPTHS)
    finally:
        os.close(descriptor)


def _reads_per_second(descriptor: int, depth: int) -> float:
    blocks = os.fstat(descriptor).st_size // BLOCK
    at = np.random.Generator(np.random.PCG64(depth)).integers(0, blocks, READS_PER_DEPTH) * BLOCK
    shares = np.array_split(at, depth)
    with ThreadPoolExecutor(depth) as threads:
        list(threads.map(lambda _: None, range(depth)))
        began = time.perf_counter()
        list(threads.map(lambda share: _read(descriptor, share.tolist()), shares))
        return READS_PER_DEPTH / (time.perf_counter() - began)


def _read(descriptor: int, offsets: list[int]) -> None:
    buffer = mmap.mmap(-1, BLOCK)  # O_DIRECT wants aligned memory
    for offset in offsets:
        os.preadv(descriptor, [buffer], offset)

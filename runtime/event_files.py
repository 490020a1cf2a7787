"""Two JSONL files of events as one stream of lines, in event-time order, without holding them.

A line without a readable time stays beside its neighbour of the same file: what is wrong with it is
the join's to say.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.producing import event_time_ms
from runtime.sources.traffic import StreamName

_TIME_MS_MAX = 2**63 - 1


class LineIndex:
    """Where each line of `path` lies and when it belongs: int64 arrays `[N]`. Blank lines are out.

    Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        times, offsets, lengths, numbers = (array("q") for _ in range(4))
        at = 0
        newest: int | None = None
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.rstrip(b"\r\n")
                if line:
                    event_ms = event_time_ms(line)
                    if event_ms is not None and 0 <= event_ms <= _TIME_MS_MAX:
                        newest = event_ms
                    times.append(-1 if newest is None else newest)
                    offsets.append(at)
                    lengths.append(len(line))
                    numbers.append(number)
                at += len(raw)
        self.times_ms = np.array(times, np.int64)
        # Lines before the first readable time go with it.
        readable = self.times_ms[self.times_ms >= 0]
        self.times_ms[self.times_ms < 0] = readable[0] if len(readable) else 0
        self.offsets = np.array(offsets, np.int64)
        self.lengths = np.array(lengths, np.int64)
        self.numbers = np.array(numbers, np.int64)


def merged_lines(
    impressions: Path, conversions: Path, *, arrival_order: bool
) -> Iterator[tuple[StreamName, int, bytes]]:
    """(stream, line number, line) of both files by event time; ties: impressions first, then the
    files' own order. With `arrival_order` each file keeps its order and only they are interleaved.
    """
    streams: tuple[StreamName, StreamName] = ("impressions", "conversions")
    paths = (impressions, conversions)
    indexes = [LineIndex(path) for path in paths]
    times: list[npt.NDArray[np.int64]] = [index.times_ms for index in indexes]
    if arrival_order:
        times = [np.maximum.accumulate(own) if len(own) else own for own in times]
    with ExitStack() as stack:
        maps = [stack.enter_context(mapped(path)) for path in paths]
        for file, line in merge_order(times):
            index = indexes[file]
            start = int(index.offsets[line])
            end = start + int(index.lengths[line])
            yield streams[file], int(index.numbers[line]), maps[file][start:end]


def merge_order(times: Sequence[npt.NDArray[np.int64]]) -> Iterator[tuple[int, int]]:
    """(which list, position in it) of all entries by time; ties: earlier lists first, then each
    list's own order."""
    which = np.repeat(np.arange(len(times)), [len(own) for own in times])
    within = np.concatenate([np.arange(len(own)) for own in times])
    for n in np.lexsort((within, which, np.concatenate(times))):
        yield int(which[n]), int(within[n])


class mapped:  # noqa: N801  a context manager, used as a function
    """The file's bytes; an empty file cannot be mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None

    def __enter__(self) -> mmap.mmap | bytes:
        if self._path.stat().st_size == 0:
            return b""
        with self._path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            self._map.close()

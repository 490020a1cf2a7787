"""History to replay: events from a stack's raw topics, or from files (JSON lines, Parquet)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from runtime.event_files import mapped, merge_order, merged_lines
from runtime.producing import event_time_ms
from runtime.sources.traffic import StreamName
from settings.config import Config
from topics.names import EVENT_TOPICS
from topics.scan import read_to_end

_STREAMS: tuple[StreamName, StreamName] = ("impressions", "conversions")
Line = tuple[StreamName, bytes]


class TopicHistory:
    """Every event of the raw topics, spooled to `folder`: bytes as they are, line breaks and all.

    Raises TopicError, OSError.
    """

    def __init__(self, config: Config, bootstrap: str, folder: Path) -> None:
        self._paths = [folder / f"{stream}.spool" for stream in _STREAMS]
        self._events: list[array[int]] = [array("q"), array("q")]
        self._produced: list[array[int]] = [array("q"), array("q")]
        self._ends: list[array[int]] = [array("q"), array("q")]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in self._paths]
            for name, message in read_to_end(config, bootstrap, EVENT_TOPICS):
                which = _STREAMS.index("impressions" if name == "impressions" else "conversions")
                value = message.value() or b""
                event_ms = event_time_ms(value)
                files[which].write(value)
                self._ends[which].append(files[which].tell())
                self._events[which].append(-1 if event_ms is None else event_ms)
                self._produced[which].append(message.timestamp()[1])

    def lines(self, *, arrival_order: bool) -> Iterator[Line]:
        """In event-time order (unreadable ones first), or in the order of production."""
        times = self._produced if arrival_order else self._events
        with ExitStack() as stack:
            maps = [stack.enter_context(mapped(path)) for path in self._paths]
            for which, n in merge_order([np.array(own, np.int64) for own in times]):
                ends = self._ends[which]
                start = ends[n - 1] if n else 0
                yield _STREAMS[which], maps[which][start : ends[n]]


class FileHistory:
    """Two files of events; `.parquet` is read by column, anything else as JSON lines."""

    def __init__(self, impressions: Path, conversions: Path, folder: Path) -> None:
        self._paths = [
            _parquet_as_lines(path, folder / f"{stream}.jsonl")
            if path.suffix == ".parquet"
            else path
            for stream, path in zip(_STREAMS, (impressions, conversions), strict=True)
        ]

    def lines(self, *, arrival_order: bool) -> Iterator[Line]:
        """In event-time order, or each file as it is."""
        impressions, conversions = self._paths
        for stream, _, line in merged_lines(impressions, conversions, arrival_order=arrival_order):
            yield stream, line


def within(lines: Iterator[Line], from_ms: int, to_ms: int, window_ms_max: int) -> Iterator[Line]:
    """Impressions of [from_ms, to_ms), and conversions until the last of their windows has closed.

    What has no readable time is left out: it belongs to no stretch of event time.
    """
    for stream, line in lines:
        event_ms = event_time_ms(line)
        last_ms = to_ms if stream == "impressions" else to_ms + window_ms_max
        if event_ms is not None and from_ms <= event_ms < last_ms:
            yield stream, line


def _parquet_as_lines(path: Path, out: Path) -> Path:
    """The rows of a Parquet file as JSON lines. A null in `features` is a missing slot; `features`
    may also be a string that holds JSON. Raises OSError."""
    import polars as pl  # loads slowly

    with out.open("wb") as file:
        try:
            for chunk in pl.scan_parquet(path).collect().iter_slices(10_000):
                for row in chunk.iter_rows(named=True):
                    file.write(orjson.dumps(_event(row)) + b"\n")
        except pl.exceptions.PolarsError as error:
            raise OSError(f"{path}: not readable as Parquet: {error}") from error
    return out


def _event(row: dict[str, Any]) -> dict[str, Any]:
    features = row.get("features")
    if isinstance(features, str):
        row["features"] = orjson.loads(features)
    elif isinstance(features, dict):
        row["features"] = {slot: value for slot, value in features.items() if value is not None}
    return row

"""What a person asks a store: how much of what, which rows, all of it as Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from embedding_store.reading import StoreReader, header_of
from embedding_store.row import HEADER


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFilter:
    """Which rows; None = any. Times are Unix seconds."""

    slot: str | None = None
    touched_before_s: int | None = None
    touched_after_s: int | None = None
    count_min: int | None = None
    count_max: int | None = None

    def chosen(self, records: NDArray[np.void], reader: StoreReader) -> NDArray[np.void]:
        """Those of `records` [N] that pass. Raises StoreMisuse for a slot no row names."""
        passes = np.ones(len(records), np.bool_)
        if self.slot is not None:
            passes &= records["slot"] == reader.layout.slot_number(self.slot)
        for bound, field, at_least in (
            (self.touched_before_s, "last_touched_s", False),
            (self.touched_after_s, "last_touched_s", True),
            (self.count_max, "count", False),
            (self.count_min, "count", True),
        ):
            if bound is not None:
                passes &= (records[field] >= bound) if at_least else (records[field] <= bound)
        return records[passes]


def statistics(reader: StoreReader) -> dict[str, Any]:
    """Counts of a whole store: reads every row."""
    slots: dict[str, dict[str, int]] = {}
    for records in reader.records():
        for number in np.unique(records["slot"]).tolist():
            of_slot = records[records["slot"] == number]
            touched = of_slot["last_touched_s"]
            slot = slots.setdefault(
                reader.layout.slot_name(number),
                {
                    "rows": 0,
                    "occurrences": 0,
                    "oldest_touched_s": int(touched.min()),
                    "newest_touched_s": 0,
                },
            )
            slot["rows"] += len(of_slot)
            slot["occurrences"] += int(of_slot["count"].sum(dtype=np.int64))
            slot["oldest_touched_s"] = min(slot["oldest_touched_s"], int(touched.min()))
            slot["newest_touched_s"] = max(slot["newest_touched_s"], int(touched.max()))
    return {
        "path": str(reader.path),
        "commit_id": reader.record.id,
        "rows": sum(slot["rows"] for slot in slots.values()),
        "row_bytes": reader.form.bytes,
        "disk_bytes": reader.disk_bytes(),
        "sets": {name: spec.shape() for name, spec in reader.layout.sets.items()},
        "slots": dict(sorted(slots.items())),
        "state": reader.state_sizes(),
    }


def describe(
    reader: StoreReader, records: NDArray[np.void], *, vectors: bool
) -> Iterator[dict[str, Any]]:
    """Each of `records` [N] as plain values; with `vectors`, those of the sets its slot has."""
    by_set = {name: reader.vectors(name, records) for name in reader.layout.sets} if vectors else {}
    for n, record in enumerate(records):
        header = header_of(record)
        slot = reader.layout.slot_name(header["slot"])
        told: dict[str, Any] = {**header, "key": f"{header['key']:#018x}", "slot": slot}
        if vectors:
            told["sets"] = {name: by_set[name][n].tolist() for name in reader.layout.sets_of(slot)}
        yield told


def scan(
    reader: StoreReader, wanted: RowFilter, *, limit: int, vectors: bool
) -> Iterator[dict[str, Any]]:
    """The first `limit` rows by key that pass, as `describe` tells them."""
    for records in reader.records():
        chosen = wanted.chosen(records, reader)[:limit]
        yield from describe(reader, chosen, vectors=vectors)
        limit -= len(chosen)
        if limit <= 0:
            return


def export_parquet(reader: StoreReader, file: Path, wanted: RowFilter) -> int:
    """Every row that passes, in order of key; how many. The file appears whole or not at all.

    Columns: the header's, the slot by name, and one list of fixed size per set, null where the
    row's slot lacks it. Rows are streamed, so the memory needed is that of a few blocks.
    """
    written = 0
    empty = _frame(reader, np.empty(0, reader.form.dtype))

    def blocks(
        columns: list[str] | None,
        predicate: pl.Expr | None,
        rows: int | None,
        _block_rows: int | None,
    ) -> Iterator[pl.DataFrame]:
        nonlocal written
        assert columns is None and predicate is None and rows is None, "the plan is a plain copy"
        for records in reader.records():
            frame = _frame(reader, wanted.chosen(records, reader))
            written += len(frame)
            yield frame

    unfinished = file.with_name(f"{file.name}.writing")
    try:
        register_io_source(blocks, schema=empty.schema).sink_parquet(unfinished)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def _frame(reader: StoreReader, records: NDArray[np.void]) -> pl.DataFrame:
    names = np.array([reader.layout.slot_name(n) for n in _numbers(reader)], dtype=object)
    positions = np.searchsorted(_numbers(reader), records["slot"])
    columns: dict[str, pl.Series] = {
        name: pl.Series(name, np.ascontiguousarray(records[name]))
        for name, _ in HEADER
        if name not in {"slot", "flags"}
    }
    columns["slot"] = pl.Series("slot", names[positions].tolist(), dtype=pl.String)
    for name, spec in reader.layout.sets.items():
        vectors = pl.Series(
            name, reader.vectors(name, records), dtype=pl.Array(pl.Float32, spec.dim)
        )
        members = reader.layout.members(name)
        if members is not None:
            has = pl.Series(members[records["slot"]])
            vectors = pl.select(pl.when(has).then(vectors).otherwise(None)).to_series().alias(name)
        columns[name] = vectors
    return pl.DataFrame(columns)


def _numbers(reader: StoreReader) -> NDArray[np.int64]:
    return np.array([0, *sorted(reader.layout.numbers.values())], np.int64)

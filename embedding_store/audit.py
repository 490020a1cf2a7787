"""What is on disk, checked: at opening (layout, commit record) and in full (every row).

RocksDB opens a truncated list of tables as an older, or an empty, database. So a file beside it,
`store.json`, names a commit that the store had reached: less than that is damage, not a new store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import xxhash

from embedding_store.commit import COMMIT_NAME, FIRST, CommitRecord, decode_record
from embedding_store.errors import StoreCorrupt, StoreUnreadable
from embedding_store.layout import RowLayout
from embedding_store.rocks import ROW_PREFIX, Rocks
from embedding_store.row import RowFormat
from embedding_store.sealed import read_sealed, sync_directory, write_sealed

LAYOUT_NAME: Final = b"mlayout"
REACHED_FILE: Final = "store.json"
PLAIN_FILES: Final = ("rocks/OPTIONS-*", "rocks/IDENTITY", "rocks/rocksdict-config.json")


def known_or_new(
    directory: Path, rocks: Rocks, layout: RowLayout
) -> tuple[CommitRecord, RowLayout]:
    """The newest commit of the store in `directory`; an empty database becomes commit 0.

    And `layout` with the numbers of every slot that was ever named, new ones written down here.
    Raises LayoutMismatch or StoreCorrupt.
    """
    reached = _reached(directory)
    stored, commit = rocks.get_many([LAYOUT_NAME, COMMIT_NAME])
    if stored is None and commit is None and reached is None:
        if next(rocks.scan(b""), None) is not None:
            raise StoreCorrupt(f"records without a layout: path=`{directory}`")
        rocks.write([(COMMIT_NAME, FIRST.encode()), (LAYOUT_NAME, layout.to_json())])
        write_reached(directory, FIRST)
        sync_directory(directory.parent)
        return FIRST, layout
    if stored is None or commit is None:
        raise StoreCorrupt(f"the layout or the commit record is missing: path=`{directory}`")
    layout = layout.adopt(stored)
    record = decode_record(commit)
    if record.id < (reached or 0):
        raise StoreCorrupt(
            f"commits that were on disk are gone: path=`{directory}` commit=`{record.id}` "
            f"expected at least `{reached}`"
        )
    if layout.to_json() != stored:
        rocks.write([(LAYOUT_NAME, layout.to_json())])
    write_reached(directory, record)
    return record, layout


def stored_layout(rocks: Rocks, directory: Path) -> RowLayout:
    """The layout that the store was written with, learning rates at their defaults.

    Raises StoreCorrupt if there is none, LayoutMismatch if it is not one of ours.
    """
    stored = rocks.get(LAYOUT_NAME)
    if stored is None:
        raise StoreCorrupt(f"no layout, so no store: path=`{directory}`")
    return RowLayout.from_json(stored)


def write_reached(directory: Path, record: CommitRecord) -> None:
    """Note in `store.json` that the store in `directory` had commit `record`, and what RocksDB's
    small files without a checksum hold; durable. Raises StoreUnreadable.
    """
    write_sealed(
        directory / REACHED_FILE,
        {"format": 2, "commit_id_min": record.id, "plain": plain_digests(directory)},
    )


def plain_digests(directory: Path) -> dict[str, str]:
    """Name in `directory` -> XXH3-64 of RocksDB's files that carry no checksum of their own."""
    try:
        return {
            str(file.relative_to(directory)): xxhash.xxh3_64_hexdigest(file.read_bytes())
            for pattern in PLAIN_FILES
            for file in sorted(directory.glob(pattern))
        }
    except OSError as error:
        raise StoreUnreadable(f"cannot read: path=`{directory}` error=`{error}`") from error


def _reached(directory: Path) -> int | None:
    file = directory / REACHED_FILE
    try:
        return int(read_sealed(file)["commit_id_min"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"not what the store writes there: path=`{file}`") from error


def verify_rows(rocks: Rocks, form: RowFormat) -> int:
    """Read every row on disk and count it; raises StoreCorrupt at the first fault."""
    commit = rocks.get(COMMIT_NAME)
    if commit is None:
        raise StoreCorrupt("the commit record is missing")
    record, rows = decode_record(commit), 0
    for name, data in rocks.scan(ROW_PREFIX):
        if len(data) != form.bytes:
            raise StoreCorrupt(
                f"a row of a wrong size: key=`0x{name[1:].hex()}` bytes=`{len(data)}` "
                f"expected=`{form.bytes}`"
            )
        if name[1:] != data[7::-1]:
            raise StoreCorrupt(
                f"a row names another key than its own: key=`0x{name[1:].hex()}` "
                f"row=`0x{data[7::-1].hex()}`"
            )
        rows += 1
    if rows != record.rows_total:
        raise StoreCorrupt(
            f"the last commit counted another number of rows: rows=`{rows}` "
            f"expected=`{record.rows_total}` commit=`{record.id}`"
        )
    return rows

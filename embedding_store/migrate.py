"""Adds or drops embedding sets: the store is rewritten beside itself, compared, and exchanged.

    STORE             the old store, then the new one
    STORE.migrating   the new one while it is made; after the exchange the old one, for a moment
    STORE.before-N    the old one, as of commit N; delete it when you are content

The exchange is one system call (renameat2 with RENAME_EXCHANGE), so at any moment STORE is a whole
store: the old one or the new one. A process that is killed leaves at most STORE.migrating behind,
which the next migration removes. Needs room for a second copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedding_store.audit import (
    LAYOUT_NAME,
    verify_rows,
    write_reached,
)
from embedding_store.commit import COMMIT_NAME
from embedding_store.errors import StoreCorrupt, StoreMisuse, StoreUnreadable
from embedding_store.exchange import exchange
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.reading import DATABASE, StoreReader
from embedding_store.rocks import Rocks, row_names
from embedding_store.row import HEADER, RowFormat, state_field, vector_field
from embedding_store.sealed import sync_directory
from embedding_store.state import STATE_PREFIX

STATE_BATCH: Final = 4096


@dataclass(frozen=True, slots=True)
class Migrated:
    """A finished migration."""

    rows: int
    before: Path
    """Where the old store is now."""
    old: RowLayout
    new: RowLayout


def changed_layout(
    layout: RowLayout,
    add: dict[str, SetSpec],
    drop: list[str],
    only_slots: dict[str, tuple[str, ...]],
) -> RowLayout:
    """`layout` with the sets of `add` and without those of `drop`; slots keep their numbers.

    A set of `add` that `only_slots` names belongs to these slots alone, otherwise to all. Raises
    StoreMisuse for a set that is there already, or is not there, and if no set would be left.
    """
    present = sorted(set(add) & set(layout.sets))
    absent = sorted(set(drop) - set(layout.sets))
    if present or absent:
        raise StoreMisuse(
            f"sets to add must be new and sets to drop must be there: present=`{present}` "
            f"absent=`{absent}` sets=`{list(layout.sets)}`"
        )
    unknown = sorted({s for slots in only_slots.values() for s in slots} - set(layout.slots))
    if unknown:
        raise StoreMisuse(f"no such slots: slots=`{unknown}` expected among `{list(layout.slots)}`")
    sets = {name: spec for name, spec in layout.sets.items() if name not in drop} | add
    slots = {}
    for slot in layout.slots:
        names = [name for name in layout.sets_of(slot) if name not in drop]
        names += [name for name in add if slot in only_slots.get(name, (slot,))]
        if not names:
            raise StoreMisuse(f"a slot would have no set left: slot=`{slot}`")
        slots[slot] = tuple(names)
    return RowLayout(sets, slots, layout.numbers)


def migrate(
    path: Path, plan: Callable[[RowLayout], RowLayout], say: Callable[[str], None]
) -> Migrated:
    """Rewrite the store in `path` under `plan(its layout)`. Sets in both keep their every byte;
    added ones start as in a row made today; headers, durable state and the commit are the same.

    Returns when the new store is in place and durable. Raises StoreLocked, StoreUnreadable,
    StoreCorrupt, StoreMisuse; then the old store is in place, unchanged.
    """
    path = Path(path).absolute()
    making = path.with_name(f"{path.name}.migrating")
    with StoreReader(path, "headwater store migrate") as old:
        layout = plan(old.layout)
        shutil.rmtree(making, ignore_errors=True)
        try:
            making.mkdir()
        except OSError as error:
            raise StoreUnreadable(f"cannot create: path=`{making}` error=`{error}`") from error
        try:
            rows = _write(old, making, RowFormat(layout), say)
            say(f"comparing {rows} rows")
            _compare(old, making, RowFormat(layout))
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)  # a full disk gets its room back
            raise
        exchange(making, path)
        sync_directory(path.parent)
        before = _free_name(path, old.record.id)
        making.rename(before)
        sync_directory(path.parent)
        return Migrated(rows, before, old.layout, layout)


def _write(old: StoreReader, making: Path, form: RowFormat, say: Callable[[str], None]) -> int:
    with Rocks(making / DATABASE) as rocks:
        rows = 0
        for records in old.records():
            words = _converted(old, records, form)
            values = words.view(f"V{form.bytes}").ravel().tolist()
            keys = np.ascontiguousarray(records["key"])
            rocks.write(zip(row_names(keys), values, strict=True))
            rows += len(records)
            if rows % 1_000_000 < len(records):
                say(f"{rows} rows")
        state = old.raw_state()
        while batch := list(islice(state, STATE_BATCH)):
            rocks.write(batch)
        # The commit comes last: without it this is no store.
        rocks.write([(LAYOUT_NAME, form.layout.to_json()), (COMMIT_NAME, old.record.encode())])
        rocks.flush()
    write_reached(making, old.record)
    return rows


def _converted(old: StoreReader, records: NDArray[np.void], form: RowFormat) -> NDArray[np.float32]:
    """`records` [N] as rows float32[N, words] of `form`."""
    keys = np.ascontiguousarray(records["key"])
    words = form.fresh(keys, np.ascontiguousarray(records["slot"]), 0)
    made = words.view(form.dtype).reshape(len(records))
    for field in _common_fields(old.form, form):
        made[field] = records[field]
    return words


def _common_fields(old: RowFormat, new: RowFormat) -> list[str]:
    fields = [name for name, _ in HEADER]
    for name in set(old.places) & set(new.places):
        fields += [vector_field(name), state_field(name)]
    return fields


def _compare(old: StoreReader, making: Path, form: RowFormat) -> None:
    """Read both back from disk; raises StoreCorrupt at the first difference."""
    with Rocks(making / DATABASE) as rocks:
        verify_rows(rocks, form)
        stored = list(rocks.get_many([LAYOUT_NAME, COMMIT_NAME]))
        if stored != [form.layout.to_json(), old.record.encode()]:
            raise StoreCorrupt(f"the copy's layout or commit differs: path=`{making}`")
        for records in old.records():
            made = rocks.get_rows(np.ascontiguousarray(records["key"]), form.words)[0]
            copied = form.records(made)
            for field in _common_fields(old.form, form):
                if copied[field].tobytes() != np.ascontiguousarray(records[field]).tobytes():
                    raise StoreCorrupt(f"the copy differs: path=`{making}` field=`{field}`")
        _compare_state(old.raw_state(), rocks.scan(STATE_PREFIX), making)


def _compare_state(
    old: Iterator[tuple[bytes, bytes]], made: Iterator[tuple[bytes, bytes]], making: Path
) -> None:
    for wanted in old:
        if next(made, None) != wanted:
            raise StoreCorrupt(f"the copy's state differs: path=`{making}` name=`{wanted[0]!r}`")
    if (extra := next(made, None)) is not None:
        raise StoreCorrupt(f"the copy has state of its own: path=`{making}` name=`{extra[0]!r}`")


def _free_name(path: Path, commit_id: int) -> Path:
    name = path.with_name(f"{path.name}.before-{commit_id}")
    number = 2
    while name.exists():
        name = path.with_name(f"{path.name}.before-{commit_id}-{number}")
        number += 1
    return name

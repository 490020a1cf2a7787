"""Checkpoints are whole or not there; copies move what is new; a restore takes the newest good."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_store.checkpoints import (
    Checkpoint,
    Retention,
    complete,
    list_checkpoints,
    next_name,
    prune,
    remove_unfinished,
)
from embedding_store.copies import copy_checkpoint
from embedding_store.errors import StoreCorrupt, StoreLocked, StoreUnreadable
from embedding_store.restore import restore
from embedding_store.store import EmbeddingStore
from embedding_store.verify import verify_files
from tests.small_disk import fill, small_disk
from tests.store_writer import open_store, run_commit

pytestmark = pytest.mark.slow


def take(store: EmbeddingStore, directory: Path, *, created_ms: int = 0) -> Checkpoint:
    directory.mkdir(exist_ok=True)
    name, taken = next_name(store.commit_id, directory), directory / ".taking-x"
    store.checkpoint(taken)
    return complete(
        taken,
        name,
        commit_id=store.commit_id,
        created_ms=created_ms,
        ranges=store.table_ranges(),
        about={"offsets": {"samples": {"0": 10 * store.commit_id}}},
    )


Made = tuple[Path, dict[int, dict[str, str]]]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    """`store` with four commits and `copies` with the first three; digests by commit."""
    digests = {}
    with open_store(tmp_path / "store") as store:
        for _ in range(4):
            commit_id = run_commit(store)
            digests[commit_id] = store.content_digest()
            if store.commit_id < 4:
                copy_checkpoint(take(store, tmp_path / "links"), tmp_path / "copies")
    yield tmp_path, digests


def damage(checkpoint: Checkpoint, *, newest: bool = True) -> str:
    """Flip a bit in its newest (or oldest) table; the name."""
    tables = sorted((checkpoint.path / "rocks").glob("*.sst"))
    table = tables[-1 if newest else 0]
    data = bytearray(table.read_bytes())
    data[9000] ^= 2
    table.write_bytes(data)
    return f"rocks/{table.name}"


def test_copies_bring_only_new_tables_and_each_stands_alone(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        tables: list[int] = []
        for _ in range(3):
            run_commit(store)
            taken = take(store, tmp_path / "links")
            report = copy_checkpoint(taken, tmp_path / "copies")
            tables.append(sum(name.endswith(".sst") for name in taken.files))
            small = len(taken.files) - tables[-1]
            assert report.files_copied == small + 1, "its one new table, and the small files"
            assert report.files_linked == tables[-1] - 1
        expected = store.content_digest()
        assert tables == [1, 2, 3]
    shutil.rmtree(tmp_path / "links")
    newest, *older = list_checkpoints(tmp_path / "copies")
    for checkpoint in older:
        shutil.rmtree(checkpoint.path)
    with open_store(newest.path) as store:
        assert store.verify() > 0
        assert store.content_digest() == expected


def test_a_table_damaged_since_is_copied_anew_when_scrubbed(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    with open_store(tmp_path / "store") as store:
        run_commit(store)
        name = damage(copy_checkpoint(take(store, tmp_path / "links"), copies).checkpoint)
        run_commit(store)
        taken = take(store, tmp_path / "links")
        carried = copy_checkpoint(taken, copies).checkpoint
        assert [fault.file for fault in verify_files(carried.path).faults] == [name]
        with pytest.raises(StoreUnreadable, match="a copy replaces nothing"):
            copy_checkpoint(taken, copies)
        shutil.rmtree(carried.path)
        scrubbed = copy_checkpoint(taken, copies, scrub=True).checkpoint
        assert not verify_files(scrubbed.path).faults
        damage(taken, newest=False)  # hard links: the store's own table, too
        shutil.rmtree(copies)
        with pytest.raises(StoreCorrupt, match="not what the checkpoint lists: file=`rocks/"):
            copy_checkpoint(taken, copies)
    assert not any(copies.iterdir())


def test_a_restore_takes_the_newest_good_one_and_tells_the_cost(made: Made) -> None:
    at, digests = made
    copies = list_checkpoints(at / "copies")
    name = damage(copies[0])
    tried = restore(at / "copies", at / "store", drill=True)
    done = restore(at / "copies", at / "store")
    for told in (tried, done):
        assert told.checkpoint == str(copies[1].path) and told.commit_id == 2
        assert told.commits_lost == 2, "3 was damaged, and the store had had 4"
        assert told.about == {"offsets": {"samples": {"0": 20}}}
        ((passed, reasons),) = [(s.checkpoint, s.reasons) for s in told.skipped]
        assert passed == str(copies[0].path)
        assert name in reasons[0] and "row 0x" in reasons[0]
    assert tried.store == "" and not list(at.glob(".restoring-*"))
    with open_store(Path(done.replaced)) as old:
        assert old.content_digest() == digests[4], "a drill had changed it"
    with open_store(at / "store") as store:
        assert store.content_digest() == digests[2]
        run_commit(store)
        assert store.content_digest() == digests[3], "it goes on as it did the first time"
    for checkpoint in copies[1:]:
        (checkpoint.path / "checkpoint.json").write_bytes(b"{}")
    with pytest.raises(StoreCorrupt, match="no checkpoint is good"):
        restore(at / "copies", at / "store")
    with open_store(at / "store") as store:
        assert store.content_digest() == digests[3]


def test_an_open_store_is_not_replaced(made: Made) -> None:
    at, digests = made
    with open_store(at / "store") as store:
        with pytest.raises(StoreLocked, match="owner=`store_writer`"):
            restore(at / "copies", at / "store")
        assert store.content_digest() == digests[4]
    with pytest.raises(StoreUnreadable, match="no checkpoint here"):
        restore(at / "nowhere", at / "store")


def test_what_a_killed_process_left_is_no_checkpoint(made: Made) -> None:
    at, _ = made
    for name in (".taking-a", ".copying-b", ".deleting-c"):
        shutil.copytree(at / "store", at / "copies" / name)
    assert len(list_checkpoints(at / "copies")) == 3
    remove_unfinished(at / "copies")
    assert len(list(at.joinpath("copies").iterdir())) == 3


def test_retention_keeps_the_newest_and_one_of_each_hour_and_day(tmp_path: Path) -> None:
    hour, day = 3_600_000, 86_400_000
    ages = [0, 1, 2, hour, hour + 1, 2 * hour, 5 * hour, day, day + hour, 2 * day, 9 * day]
    now = 1_000 * day + 23 * hour + 1000  # ages of one day fall within one, hours likewise
    found = [
        Checkpoint(path=tmp_path / str(n), number=99 - n, commit_id=n, created_ms=now - age)
        for n, age in enumerate(ages)
    ]

    def kept(retention: Retention) -> list[int]:
        return sorted(ages[99 - number] for number in retention.keeps(found))

    assert kept(Retention(kept=2)) == [0, 1]
    assert kept(Retention(kept=1, hourly=3)) == [0, hour, 2 * hour]
    assert kept(Retention(kept=1, daily=3)) == [0, day, 2 * day]


def test_pruning_spares_the_last_one_that_can_be_read(made: Made) -> None:
    at, _ = made
    copies = list_checkpoints(at / "copies")
    for checkpoint in copies[:2]:
        (checkpoint.path / "checkpoint.json").write_bytes(b"torn")
    gone = prune(at / "copies", Retention(kept=1))
    assert gone == [copies[1].path]
    assert [bool(c.damaged) for c in list_checkpoints(at / "copies")] == [True, False]


def test_a_full_disk_costs_the_copy_under_way_and_nothing_else(made: Made) -> None:
    at, digests = made
    with small_disk(at / "disk", "2m") as disk, contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(at / "store"))
        first = copy_checkpoint(take(store, at / "links"), disk).checkpoint
        run_commit(store)
        taken = take(store, at / "links")
        for leave in (0, 4096, 12_288, 36_864):
            ballast = fill(disk, leave=leave)
            with pytest.raises(StoreUnreadable, match="No space left on device"):
                copy_checkpoint(taken, disk)
            assert [c.number for c in list_checkpoints(disk)] == [first.number]
            assert not verify_files(first.path).faults
            ballast.unlink()
        copied = copy_checkpoint(taken, disk)
        assert copied.files_linked > 0 and not verify_files(copied.checkpoint.path).faults
        assert run_commit(store) == 6, "the store's own disk had no part in it"
    assert digests[4]

"""A disk that fills up at any write of the store: the reason is told, and the last commit stays.

Real file systems of a few megabytes: in the log, while the child builds a table, while RocksDB
takes it in, in compaction, while a checkpoint is taken, in a migration and in a restore. Copies of
checkpoints are in `test_checkpoints`.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from embedding_store.checkpoints import complete
from embedding_store.copies import copy_checkpoint
from embedding_store.errors import StorePoisoned, StoreUnreadable
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.migrate import changed_layout, migrate
from embedding_store.restore import restore
from embedding_store.store import EmbeddingStore
from tests.knobs import SEED, kills
from tests.small_disk import fill, small_disk
from tests.store_writer import open_store, run_commit
from tests.test_store_crash import Truth

TRIALS = kills(6, 100)
FULL = "No space left on device"
pytestmark = pytest.mark.slow


def test_wherever_a_commit_runs_out_of_disk_the_one_before_stays(tmp_path: Path) -> None:
    """Room for a drawn number of bytes is left, and commits go on until one is refused: now by the
    log, now by the child, now by RocksDB as it takes the table in or merges."""
    draw, refused_by = random.Random(SEED), set()
    truth = Truth(tmp_path / "truth", keep_every=10**6)
    with small_disk(tmp_path / "disk", "12m") as disk:
        for trial in range(TRIALS):
            store = open_store(disk / "store", table_rows_min=1 if trial % 3 else 8192)
            ballast = fill(disk, leave=int(draw.choice((3e4, 3e5, 2e6)) * draw.random()))
            with pytest.raises(StorePoisoned, match=FULL) as caught:
                while True:
                    run_commit(store)
            refused_by.add(_writer(str(caught.value.__cause__)))
            promised = store.commit_id
            with pytest.raises(StorePoisoned):
                store.put("s", b"", b"")
            store.close()
            ballast.unlink()
            with open_store(disk / "store") as again:
                assert promised <= again.commit_id <= promised + 1, (trial, SEED)
                assert again.content_digest() == truth.after(again.commit_id), (trial, SEED)
                again.verify()
                run_commit(again)
            if (disk / "store").stat().st_size > 4e6 or trial % 10 == 9:
                shutil.rmtree(disk / "store")
    truth.close()
    print(f"{TRIALS} trials, seed {SEED}: refused by {refused_by}")  # noqa: T201
    assert len(refused_by) > 1, refused_by


def _writer(reason: str) -> str:
    return "the child" if "was not built" in reason else reason.partition(":")[0].strip()


def test_a_table_that_is_built_but_not_taken_in_is_no_commit(tmp_path: Path) -> None:
    """The disk fills up between the two: RocksDB cannot note the table in its list."""
    with small_disk(tmp_path / "disk", "12m") as disk:
        store = open_store(disk / "store", table_rows_min=1)
        builder, ballast = store._commits.builder, disk / "ballast"
        build = builder.build

        def build_then_fill(*arguments: object) -> object:
            ballast.unlink(missing_ok=True)
            built = build(*arguments)  # type: ignore[arg-type]
            if store.commit_id >= 3:
                fill(disk)
            return built

        builder.build = build_then_fill  # type: ignore[assignment, method-assign]
        with pytest.raises(StorePoisoned, match=FULL):
            for _ in range(200):  # the list grows by a few bytes a commit within its last page
                run_commit(store)
        promised = store.commit_id
        store.close()
        ballast.unlink()
        truth = Truth(tmp_path / "truth", keep_every=0)
        with open_store(disk / "store") as again:
            assert again.commit_id == promised > 0
            assert again.content_digest() == truth.after(promised)
            assert not list((disk / "store" / "building").iterdir())
            again.verify()
            run_commit(again)
            assert again.content_digest() == truth.after(promised + 1)
        truth.close()


def test_a_checkpoint_on_a_full_disk_is_none(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "12m") as disk:
        store = open_store(disk / "store")
        for _ in range(3):
            run_commit(store)
        digest = store.content_digest()
        ballast = fill(disk)
        with pytest.raises(StorePoisoned, match=FULL):
            store.checkpoint(disk / "taken")
        assert not (disk / "taken").exists()
        store.close()
        ballast.unlink()
        with open_store(disk / "store") as again:
            assert again.content_digest() == digest
            again.checkpoint(disk / "taken")
            ballast = fill(disk)
            with pytest.raises(StoreUnreadable, match=FULL):
                complete(disk / "taken", "x", commit_id=3, created_ms=0, ranges={}, about={})
            ballast.unlink()
            again.verify()


def test_a_migration_that_runs_out_of_disk_leaves_the_old_store(tmp_path: Path) -> None:
    added = {"task:like": SetSpec(dim=5)}

    def plan(layout: RowLayout) -> RowLayout:
        return changed_layout(layout, added, [], {})

    with small_disk(tmp_path / "disk", "12m") as disk:
        with open_store(disk / "store") as store:
            for _ in range(5):
                run_commit(store)
            digest, layout = store.content_digest(), store.layout
        for leave in (0, 8_000, 60_000, 120_000):
            ballast = fill(disk, leave=leave)
            with pytest.raises(StoreUnreadable, match=FULL):
                migrate(disk / "store", plan, lambda _: None)
            ballast.unlink()
            assert not (disk / "store.migrating").exists(), "what was made took the room"
            with open_store(disk / "store") as store:
                assert store.content_digest() == digest
        rows = migrate(disk / "store", plan, lambda _: None).rows
        with EmbeddingStore.open(
            disk / "store", plan(layout), cache_rows_max=100, owner="test"
        ) as new:
            assert new.verify() == rows


def test_a_restore_onto_a_full_disk_leaves_the_store_that_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "12m") as disk, open_store(tmp_path / "other") as other:
        run_commit(other)
        (tmp_path / "links").mkdir()
        other.checkpoint(tmp_path / "links" / ".taking-x")
        taken = complete(
            tmp_path / "links" / ".taking-x",
            "checkpoint-00000001-commit-1",
            commit_id=1,
            created_ms=0,
            ranges=other.table_ranges(),
            about={},
        )
        copy_checkpoint(taken, tmp_path / "copies")
        with open_store(disk / "store") as store:
            run_commit(store)
            run_commit(store)
            digest = store.content_digest()
        for leave in (0, 20_000, 60_000):
            ballast = fill(disk, leave=leave)
            with pytest.raises(StoreUnreadable, match=FULL):
                restore(tmp_path / "copies", disk / "store")
            ballast.unlink()
            with open_store(disk / "store") as store:
                assert store.content_digest() == digest
        restore(tmp_path / "copies", disk / "store")
        with open_store(disk / "store") as store:
            assert store.content_digest() == other.content_digest()

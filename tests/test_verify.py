"""One flipped bit, in any file and at any place, is found and named, with the keys that it hit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_store.checkpoints import complete
from embedding_store.errors import StoreUnreadable
from embedding_store.log_file import check_log
from embedding_store.table_file import check_table
from embedding_store.verify import verify_files
from tests.knobs import SEED, examples
from tests.store_writer import open_store, run_commit

FLIPS = examples(60, 2000)
KINDS = (
    "rocks/*.sst",
    "rocks/*.log",
    "rocks/MANIFEST-*",
    "rocks/CURRENT",
    "rocks/OPTIONS-*",
    "rocks/IDENTITY",
    "rocks/rocksdict-config.json",
    "store.json",
    "checkpoint.json",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A store that was killed (commits in its log), one that was closed, and a checkpoint."""
    at = tmp_path_factory.mktemp("verify")
    with open_store(at / "store") as store:
        for _ in range(4):
            run_commit(store)
        shutil.copytree(at / "store", at / "killed")
        store.checkpoint(at / ".taking")
        complete(
            at / ".taking",
            "checkpoint-00000001-commit-4",
            commit_id=4,
            created_ms=0,
            ranges=store.table_ranges(),
            about={},
        )
    name = "checkpoint-00000001-commit-4"
    shutil.copytree(at / name, at / "copies" / name)  # the links share the store's bytes
    yield {
        "killed": at / "killed",
        "store": at / "store",
        "checkpoint": at / "copies" / name,
    }


def _largest(folder: Path, kind: str) -> Path | None:
    return max(folder.glob(kind), key=lambda file: file.stat().st_size, default=None)


# What such a folder does not have: everything is in the log yet, or nothing is any more; a
# checkpoint is given an identity when it is opened.
ABSENT = {
    ("killed", "rocks/*.sst"),
    ("store", "rocks/*.log"),
    ("checkpoint", "rocks/*.log"),
    ("checkpoint", "rocks/IDENTITY"),
    ("killed", "checkpoint.json"),
    ("store", "checkpoint.json"),
}


@pytest.mark.parametrize(
    ("which", "kind"),
    [(w, k) for w in ("killed", "store", "checkpoint") for k in KINDS if (w, k) not in ABSENT],
)
def test_any_flipped_bit_is_found_and_its_file_named(
    folders: dict[str, Path], which: str, kind: str
) -> None:
    folder = folders[which]
    assert not verify_files(folder).faults
    file = _largest(folder, kind)
    assert file is not None and file.stat().st_size > 0
    whole, draw = file.read_bytes(), random.Random(SEED)
    try:
        for _ in range(min(FLIPS, 8 * len(whole))):
            at = draw.randrange(len(whole))
            damaged = bytearray(whole)
            damaged[at] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            named = [fault.file for fault in verify_files(folder).faults]
            assert str(file.relative_to(folder)) in named, (at, SEED)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", [k for k in KINDS if ("checkpoint", k) not in ABSENT])
def test_a_checkpoint_s_cut_or_missing_file_is_named(folders: dict[str, Path], kind: str) -> None:
    folder = folders["checkpoint"]
    file = _largest(folder, kind)
    assert file is not None
    whole, name = file.read_bytes(), str(file.relative_to(folder))
    try:
        for length in {0, len(whole) // 2, max(0, len(whole) - 1)} - {len(whole)}:
            file.write_bytes(whole[:length])
            assert name in [fault.file for fault in verify_files(folder).faults], length
        file.unlink()
        assert name in [fault.file for fault in verify_files(folder).faults]
    finally:
        file.write_bytes(whole)
    (folder / "rocks" / "000999.sst").write_bytes(b"foreign")
    try:
        assert "rocks/000999.sst" in [fault.file for fault in verify_files(folder).faults]
    finally:
        (folder / "rocks" / "000999.sst").unlink()


def test_the_keys_of_a_damaged_block_are_told(folders: dict[str, Path]) -> None:
    """What a table told to hold between two keys, it no longer holds, and the rest it does."""
    file = _largest(folders["store"], "rocks/*.sst")
    assert file is not None
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[10_000] ^= 1
    file.write_bytes(damaged)
    try:
        (fault,) = check_table(file).faults
        told = next(f for f in verify_files(folders["store"]).faults if f.file.endswith(".sst"))
    finally:
        file.write_bytes(whole)
    assert fault.after is not None and fault.until is not None and fault.after < fault.until
    assert fault.after[:1] == b"r" and "after row 0x" in told.keys and "up to row 0x" in told.keys
    with open_store(folders["store"]) as store:
        inside = [
            key
            for key, _, _ in store.rows()
            if fault.after < b"r" + key.to_bytes(8, "big") <= fault.until
        ]
    assert 10 < len(inside) < 200, "one block of rows"


def test_a_log_that_a_crash_cut_is_not_called_damaged(folders: dict[str, Path]) -> None:
    """At each length: a prefix of what was written never is damage, whatever it ends with."""
    file = _largest(folders["killed"], "rocks/*.log")
    assert file is not None
    whole = file.read_bytes()
    torn, draw = file.with_name("torn"), random.Random(SEED)
    try:
        for length in [*range(40), *(draw.randrange(len(whole)) for _ in range(FLIPS))]:
            torn.write_bytes(whole[:length])
            check = check_log(torn)
            assert check.fault is None, length
        assert check_log(file).records > 4 and not check_log(file).torn
    finally:
        torn.unlink()


def test_an_empty_directory_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreadable, match="no store and no checkpoint"):
        verify_files(tmp_path)

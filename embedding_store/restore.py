"""Puts the newest good checkpoint in a store's place.

A checkpoint counts as good when every file is what its list says, and the store in it opens and
holds the rows that its last commit counted. One that is not is told and passed over. The store that
was there is moved aside, never deleted; a drill leaves everything as it was.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from embedding_store.as_stored import open_as_stored
from embedding_store.audit import REACHED_FILE
from embedding_store.checkpoints import Checkpoint, list_checkpoints
from embedding_store.copies import copy_file, sync_tree
from embedding_store.errors import StoreCorrupt, StoreError, StoreUnreadable
from embedding_store.exchange import exchange
from embedding_store.owner import OwnerLock
from embedding_store.sealed import read_sealed, sync_directory
from embedding_store.verify import verify_files

_CACHE_ROWS: Final = 1024


class Skipped(msgspec.Struct, frozen=True):
    """A checkpoint that was passed over, and why."""

    checkpoint: str
    reasons: list[str]


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken, and what that costs."""

    checkpoint: str
    store: str
    """Where it was put; "" after a drill."""
    replaced: str
    """Where the store that was there is now; "" if there was none."""
    commit_id: int
    created_ms: int
    about: dict[str, Any]
    rows: int
    commits_lost: int | None
    """Between it and the newest commit that the store, or a skipped checkpoint, is known to have
    had; None if neither can be read. The store may have had some more: it notes at its opening."""
    skipped: list[Skipped]
    seconds: float


def restore(directory: Path, store: Path, *, drill: bool = False) -> Restored:
    """The newest good checkpoint of `directory` becomes the store at `store`.

    Raises StoreUnreadable if there is no checkpoint or the disk refuses, StoreLocked if a process
    has the store open, StoreCorrupt, with every reason, if no checkpoint is good. Until the last
    step, a rename, the store stays as it was.
    """
    started = time.monotonic()
    checkpoints = list_checkpoints(directory)
    if not checkpoints:
        raise StoreUnreadable(f"no checkpoint here: path=`{directory}`")
    skipped: list[Skipped] = []
    for checkpoint in checkpoints:
        reasons = _faults(checkpoint)
        if not reasons:
            try:
                rows, replaced = _take(checkpoint, store, drill=drill)
            except StoreCorrupt as error:
                reasons = [str(error)]
            else:
                return Restored(
                    checkpoint=str(checkpoint.path),
                    store="" if drill else str(store),
                    replaced=replaced,
                    commit_id=checkpoint.commit_id,
                    created_ms=checkpoint.created_ms,
                    about=checkpoint.about,
                    rows=rows,
                    commits_lost=_lost(checkpoint, skipped, Path(replaced or store)),
                    skipped=skipped,
                    seconds=round(time.monotonic() - started, 3),
                )
        skipped.append(Skipped(str(checkpoint.path), reasons))
    told = "; ".join(f"{s.checkpoint}: {', '.join(s.reasons)}" for s in skipped)
    raise StoreCorrupt(f"no checkpoint is good: {told}")


def _faults(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.damaged:
        return [checkpoint.damaged]
    return [str(fault) for fault in verify_files(checkpoint.path).faults]


def _take(checkpoint: Checkpoint, store: Path, *, drill: bool) -> tuple[int, str]:
    """(rows, where the old store is now). The copy is opened and verified before it counts."""
    parent = store.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".restoring-{store.name}-", dir=parent))
    except OSError as error:
        raise StoreUnreadable(f"cannot write: path=`{parent}` error=`{error}`") from error
    try:
        for name in checkpoint.files:
            place = building / name
            place.parent.mkdir(parents=True, exist_ok=True)
            copy_file(checkpoint.path / name, place)
        sync_tree(building)
        rows = open_and_verify(building)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreUnreadable(f"cannot restore: to=`{store}` error=`{error}`") from error
        raise
    if drill:
        shutil.rmtree(building)
        return rows, ""
    return rows, _put(building, store)


def open_and_verify(store: Path) -> int:
    """Open as its own layout says, read every row; their number. Raises StoreError."""
    with open_as_stored(
        store, cache_rows_max=_CACHE_ROWS, owner="headwater store restore"
    ) as opened:
        return opened.verify()


def _put(building: Path, store: Path) -> str:
    """Put `building` at `store` in one step; where the store that was there is now."""
    aside = ""
    building.chmod(0o755)
    if store.exists():
        lock = OwnerLock(store, "headwater store restore")
        try:
            exchange(building, store)
        finally:
            lock.release()
        moved = store.with_name(f"{store.name}.replaced-{time.time_ns() // 1_000_000}")
        building.rename(moved)
        aside = str(moved)
    else:
        building.rename(store)
    sync_directory(store.absolute().parent)
    return aside


def _lost(taken: Checkpoint, skipped: list[Skipped], old_store: Path) -> int | None:
    known = [Path(s.checkpoint).name.rpartition("-")[2] for s in skipped]
    newest = [int(number) for number in known if number.isdigit()]
    try:
        newest.append(int(read_sealed(old_store / REACHED_FILE)["commit_id_min"]))
    except (StoreError, FileNotFoundError, NotADirectoryError, KeyError):
        if not newest:
            return None
    return max(0, max(newest) - taken.commit_id)

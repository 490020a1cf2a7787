"""Copies a checkpoint to another directory, on another disk: only tables that are not there yet.

Each copy is a whole checkpoint of its own: tables that an earlier copy holds, by name, size and
checksum, are linked from it, everything else is read, checked against the checkpoint's list while
it is written, and synced. It appears under its name at the end, or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from embedding_store.checkpoints import Checkpoint, list_checkpoints, read_checkpoint
from embedding_store.errors import StoreCorrupt, StoreUnreadable
from embedding_store.sealed import sync_directory
from embedding_store.verify import CHECKPOINT_FILE, digest_file

_PART_BYTES: Final = 1 << 20
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What one copy moved."""

    checkpoint: Checkpoint
    files_copied: int
    bytes_copied: int
    files_linked: int
    bytes_linked: int


def copy_checkpoint(checkpoint: Checkpoint, directory: Path, *, scrub: bool = False) -> CopyReport:
    """Copy `checkpoint` into `directory` under its own name; durable on return.

    With `scrub` a table is read before it is linked, and copied anew if it was damaged since.

    Raises StoreCorrupt, naming the file, if it is not what its list says; StoreUnreadable if the
    disk refuses, the reason in it. Then nothing of this copy is left but what a later one removes.
    """
    if checkpoint.damaged:
        raise StoreCorrupt(f"{checkpoint.path}: {checkpoint.damaged}")
    target = directory / checkpoint.path.name
    if target.exists():
        raise StoreUnreadable(f"there already, and a copy replaces nothing: path=`{target}`")
    building = directory / f".copying-{checkpoint.path.name}"
    copied = linked = bytes_copied = bytes_linked = 0
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(building, ignore_errors=True)
        held = _held_tables(directory)
        for name, entry in checkpoint.files.items():
            place = building / name
            place.parent.mkdir(parents=True, exist_ok=True)
            size, digest = int(entry["bytes"]), str(entry["xxh3"])
            earlier = held.get((place.name, size, digest))
            sound = earlier is not None and (not scrub or digest_file(earlier) == digest)
            if earlier is not None and sound and _linked(earlier, place):
                linked, bytes_linked = linked + 1, bytes_linked + size
                continue
            if copy_file(checkpoint.path / name, place) != digest:
                raise StoreCorrupt(f"not what the checkpoint lists: file=`{name}`")
            copied, bytes_copied = copied + 1, bytes_copied + size
        copy_file(checkpoint.path / CHECKPOINT_FILE, building / CHECKPOINT_FILE)
        sync_tree(building)
        building.rename(target)
        sync_directory(directory)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise StoreUnreadable(f"cannot copy: to=`{directory}` error=`{error}`") from error
    except StoreCorrupt as error:
        shutil.rmtree(building, ignore_errors=True)
        raise StoreCorrupt(f"{checkpoint.path}: {error}") from error
    return CopyReport(read_checkpoint(target), copied, bytes_copied, linked, bytes_linked)


def copy_file(source: Path, target: Path) -> str:
    """Copy and sync; the XXH3-128 of what was written. Raises OSError."""
    digest = xxhash.xxh3_128()
    with source.open("rb") as reading, target.open("xb") as writing:
        while part := reading.read(_PART_BYTES):
            digest.update(part)
            writing.write(part)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


def sync_tree(directory: Path) -> None:
    """The names of all files below `directory`."""
    for folder in [directory, *(f for f in directory.rglob("*") if f.is_dir())]:
        sync_directory(folder)


def _held_tables(directory: Path) -> dict[tuple[str, int, str], Path]:
    """(file name, bytes, checksum) -> where an earlier copy holds that table."""
    held: dict[tuple[str, int, str], Path] = {}
    for checkpoint in list_checkpoints(directory):
        for name, entry in checkpoint.files.items():
            file = checkpoint.path / name
            if file.suffix == ".sst" and file.is_file():
                size = int(entry["bytes"])
                if file.stat().st_size == size:
                    held.setdefault((file.name, size, str(entry["xxh3"])), file)
    return held


def _linked(earlier: Path, place: Path) -> bool:
    try:
        os.link(earlier, place)
    except OSError as error:
        if error.errno in _NO_LINKS:  # a disk without hard links: copied in full
            return False
        raise
    return True

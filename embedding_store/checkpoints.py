"""A directory of checkpoints: taken by hard links, listed, told apart from half-made ones, pruned.

    DIRECTORY/checkpoint-00000007-commit-1234/
        checkpoint.json     every file: bytes, XXH3-128, the keys of tables; what the checkpoint is
        store.json, rocks/  a store like any other

`checkpoint.json` is written last and the directory renamed after it, so what has the name is whole.
The number only grows, across restores too, where commit ids go back: the greatest is the newest.
A table never changes, so its checksum is computed once and carried from checkpoint to checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from embedding_store.errors import StoreCorrupt, StoreUnreadable
from embedding_store.sealed import read_sealed, sync_directory, write_sealed
from embedding_store.verify import CHECKPOINT_FILE, CHECKPOINT_NAME, digest_file

FORMAT: Final = 1
UNFINISHED: Final = (".taking-", ".copying-", ".deleting-")

About = dict[str, Any]
"""What the owner wants to read when it chooses: version, source offsets, times."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint, or one whose list cannot be read (`damaged` says why)."""

    path: Path
    number: int
    commit_id: int
    created_ms: int = 0
    bytes: int = 0
    files: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> {"bytes", "xxh3"} and of tables {"first", "last"}: hex of the keys."""
    about: About = field(default_factory=dict)
    damaged: str = ""


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """Newest first; empty if there is no such directory. Raises StoreUnreadable."""
    try:
        folders = [
            f for f in directory.iterdir() if CHECKPOINT_NAME.fullmatch(f.name) and f.is_dir()
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreUnreadable(f"cannot list: path=`{directory}` error=`{error}`") from error
    found = [read_checkpoint(folder) for folder in folders]
    return sorted(found, key=lambda checkpoint: checkpoint.number, reverse=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """What `checkpoint.json` in `folder` says; damage is told in the result."""
    match = CHECKPOINT_NAME.fullmatch(folder.name)
    number, commit_id = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    try:
        told = read_sealed(folder / CHECKPOINT_FILE)
        return Checkpoint(
            path=folder,
            number=number,
            commit_id=int(told["commit_id"]),
            created_ms=int(told["created_ms"]),
            bytes=sum(int(file["bytes"]) for file in told["files"].values()),
            files=told["files"],
            about=told["about"],
        )
    except (StoreCorrupt, StoreUnreadable, FileNotFoundError, KeyError, ValueError) as error:
        reason = f"{CHECKPOINT_FILE}: {error}"
        return Checkpoint(path=folder, number=number, commit_id=commit_id, damaged=reason)


def next_name(commit_id: int, *directories: Path | None) -> str:
    """Of the checkpoint to come: its number is above all in `directories`. A new disk has none of
    the store's checkpoints, while its copies' directory has."""
    found = [c.number for d in directories if d is not None for c in list_checkpoints(d)]
    return f"checkpoint-{max(found, default=0) + 1:08d}-commit-{commit_id}"


def complete(
    taken: Path,
    name: str,
    *,
    commit_id: int,
    created_ms: int,
    ranges: Mapping[str, tuple[bytes, bytes]],
    about: About,
) -> Checkpoint:
    """Give the hard links in `taken` their list and their `name`, beside it; durable on return.

    `ranges` are tables' first and last keys by file name. Reads what no checkpoint here has listed.
    Raises StoreUnreadable.
    """
    known = _known_digests(taken.parent)
    files: dict[str, dict[str, Any]] = {}
    try:
        for file in sorted(f for f in taken.rglob("*") if f.is_file()):
            status = file.stat()
            digest = known.get(status.st_ino) if file.suffix == ".sst" else None
            entry = {"bytes": status.st_size, "xxh3": digest or digest_file(file)}
            if file.name in ranges:
                first, last = ranges[file.name]
                entry |= {"first": first.hex(), "last": last.hex()}
            files[str(file.relative_to(taken))] = entry
        content = {
            "format": FORMAT,
            "commit_id": commit_id,
            "created_ms": created_ms,
            "about": about,
            "files": files,
        }
        write_sealed(taken / CHECKPOINT_FILE, content)
        taken.rename(taken.with_name(name))
        sync_directory(taken.parent)
    except OSError as error:
        raise StoreUnreadable(f"cannot complete: path=`{taken}` error=`{error}`") from error
    return read_checkpoint(taken.with_name(name))


def _known_digests(directory: Path) -> dict[int, str]:
    """Inode -> checksum of the tables of the whole checkpoints in `directory`."""
    known = {}
    for checkpoint in list_checkpoints(directory):
        for name, entry in checkpoint.files.items():
            file = checkpoint.path / name
            if file.suffix == ".sst" and file.exists() and file.stat().st_nlink > 1:
                known[file.stat().st_ino] = str(entry["xxh3"])
    return known


def remove_unfinished(directory: Path) -> None:
    """What a process that died while taking, copying or deleting has left."""
    if directory.is_dir():
        for folder in directory.iterdir():
            if folder.name.startswith(UNFINISHED):
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Kept are the newest `kept`, and the newest of each of the last `hourly` hours and `daily`
    days that have one."""

    kept: int
    hourly: int = 0
    daily: int = 0

    def keeps(self, checkpoints: list[Checkpoint]) -> set[int]:
        """Numbers to keep of `checkpoints`, newest first."""
        numbers = {checkpoint.number for checkpoint in checkpoints[: self.kept]}
        for count, length_ms in ((self.hourly, 3_600_000), (self.daily, 86_400_000)):
            newest: dict[int, int] = {}
            for checkpoint in checkpoints:
                newest.setdefault(checkpoint.created_ms // length_ms, checkpoint.number)
            numbers |= {newest[span] for span in sorted(newest, reverse=True)[:count]}
        return numbers


def prune(directory: Path, retention: Retention) -> list[Path]:
    """Delete what `retention` does not keep; returns which. A damaged one counts like any other,
    but the newest one that can be read is never deleted. Raises StoreUnreadable."""
    checkpoints = list_checkpoints(directory)
    kept = retention.keeps(checkpoints)
    kept |= {c.number for c in [c for c in checkpoints if not c.damaged][:1]}
    gone = [checkpoint.path for checkpoint in checkpoints if checkpoint.number not in kept]
    try:
        for path in gone:  # renamed first: half of a checkpoint must not have its name
            deleting = path.with_name(f".deleting-{path.name}")
            path.rename(deleting)
            shutil.rmtree(deleting)
    except OSError as error:
        raise StoreUnreadable(f"cannot delete: path=`{directory}` error=`{error}`") from error
    return gone


def same_disk(directory: Path, store: Path) -> bool:
    """Can `directory`, which need not exist yet, hold hard links to the files of `store`?"""
    there = directory.absolute()
    while not there.exists():
        there = there.parent
    return there.stat().st_dev == store.stat().st_dev

"""Which retained checkpoint the next run of the join starts from.

Flink writes a checkpoint's `_metadata` last, so a checkpoint directory without it never completed.
A `_metadata` cut short by a crash did not complete either: its transactions were not committed, so
the one before it is the newest that counts. `job` checks that with Flink's own reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from stream.errors import JoinModeChanged

_NUMBER = re.compile(r"chk-(\d+)")


def retained_checkpoints(state_dir: Path) -> Iterator[Path]:
    """Directories of the retained checkpoints under `state_dir`, newest first.

    Numbers go on across restarts, since each run restores the one before: the largest is newest.
    """
    found: list[tuple[int, float, Path]] = []
    for metadata in (state_dir / "checkpoints").glob("*/chk-*/_metadata"):
        match = _NUMBER.fullmatch(metadata.parent.name)
        if match and metadata.stat().st_size > 0:
            found.append((int(match.group(1)), metadata.stat().st_mtime, metadata.parent))
    for _, _, path in sorted(found, reverse=True):
        yield path


def check_mode(state_dir: Path, *, bounded: bool) -> None:
    """Raise JoinModeChanged if the state here was made by a run of the other mode."""
    now = "bounded" if bounded else "unbounded"
    note = state_dir / "mode"
    if any(retained_checkpoints(state_dir)) and note.exists():
        before = note.read_text(encoding="utf-8").strip()
        if before != now:
            raise JoinModeChanged(state_dir, before, now)
    note.write_text(f"{now}\n", encoding="utf-8")


def forget_finished(state_dir: Path) -> None:
    """Remove the directories of earlier runs that hold no file any more."""
    for run in (state_dir / "checkpoints").glob("*"):
        if run.is_dir() and not any(path.is_file() for path in run.rglob("*")):
            for folder in sorted((p for p in run.rglob("*") if p.is_dir()), reverse=True):
                folder.rmdir()
            run.rmdir()

"""Which retained checkpoint the next run of the join starts from.

A restored job also has no watermark until every partition has brought an event: for that long late
events would pass for timely ones, and duplicates of events long decided for new ones. The outputs
say which watermark had been reached (`reached_watermark_ms`).

Flink writes a checkpoint's `_metadata` last, so a checkpoint directory without it never completed.
A `_metadata` cut short by a crash did not complete either: its transactions were not committed, so
the one before it is the newest that counts. `job` checks that with Flink's own reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from settings.config import Config
from stream.errors import JoinModeChanged
from topics.names import JOIN_OUTPUTS
from topics.scan import end_offsets, read_to_end

_TAIL_RECORDS = 50
_END_OF_INPUT_MS = 2**62
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


def reached_watermark_ms(config: Config, bootstrap: str) -> int:
    """The newest watermark with which the join wrote a committed record, -1 if there is none.

    Reads the last few records of every output partition. The watermark at the end of bounded input
    is no event time and does not count.
    """
    ends = end_offsets(config, bootstrap, JOIN_OUTPUTS)
    start = {where: max(0, end - _TAIL_RECORDS) for where, end in ends.items()}
    reached = -1
    for _, message in read_to_end(config, bootstrap, JOIN_OUTPUTS, start=start):
        found = int(dict(message.headers() or []).get("hw_watermark_ms") or b"-1")
        if found < _END_OF_INPUT_MS:
            reached = max(reached, found)
    return reached


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

"""Which state the next run of the join starts from: a retained checkpoint or a savepoint.

Both carry the number of the checkpoint that they are; numbers go on across restarts, since each run
restores the one before. The largest is the newest, and the only one to start from: whatever came
after an older one is committed already and would be written a second time.

Flink writes a state's `_metadata` last, so a directory without it never completed. A `_metadata`
cut short by a crash did not complete either: its transactions were not committed, so the one before
it is the newest that counts. `job` checks that with Flink's own reader.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from settings.config import Config
from stream.errors import JoinConfigChanged, JoinModeChanged, SavepointOld

_MAGIC = 0x4960672D
_HEAD = struct.Struct(">iiq")
"""How `_metadata` begins: magic number, format version, checkpoint id."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """A complete state of the join on disk."""

    number: int
    path: Path
    is_savepoint: bool


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What kept state is about: with another one it would be read wrongly, or be judged by rules
    that its outputs did not follow. Written beside the state by every run."""

    windows_ms: dict[str, int]
    policy: str
    elapsed_ms: int
    topic_prefix: str
    events_prefix: str
    rules: dict[str, Any] = {}
    """Every other value of `kinds.*` and `join` that decides what samples say, by its name."""
    parallelism: int = 0
    """0 = not said, by an earlier release."""
    plan: str = ""
    """Name of the plan that the state belongs to (`stream.kept_plans`)."""


def saved_states(state_dir: Path) -> Iterator[SavedState]:
    """Every complete state under `state_dir`, newest first."""
    found: list[tuple[int, float, SavedState]] = []
    patterns = (("checkpoints/*/chk-*/_metadata", False), ("savepoints/*/_metadata", True))
    for pattern, is_savepoint in patterns:
        for metadata in state_dir.glob(pattern):
            number = _checkpoint_number(metadata)
            if number is not None:
                saved = SavedState(number, metadata.parent, is_savepoint)
                found.append((number, metadata.stat().st_mtime, saved))
    for _, _, saved in sorted(found, key=lambda entry: entry[:2], reverse=True):
        yield saved


def require_newest(state_dir: Path, asked: Path) -> SavedState:
    """The state at `asked`, if nothing newer is kept. Raises SavepointOld, with what is newer, and
    JoinConfigChanged where there is no state at `asked`."""
    number = _checkpoint_number(asked / "_metadata")
    if number is None:
        raise JoinConfigChanged(f"{asked} holds no complete savepoint or checkpoint")
    for folder in (state_dir, home_of(asked)):
        newest = next(saved_states(folder), None)
        if newest is not None and newest.number > number:
            raise SavepointOld(asked, newest.path)
    return SavedState(number, asked, is_savepoint=not asked.name.startswith("chk-"))


def home_of(asked: Path) -> Path:
    """The state directory that the state at `asked` was written in; `asked` if it was moved out."""
    return next((folder for folder in asked.parents if (folder / "shape.json").exists()), asked)


def shape_of(config: Config, plan: str) -> Shape:
    """The shape of a run with this config."""
    return Shape(
        windows_ms={kind: spec.window for kind, spec in config.kinds.items()},
        policy=config.join.policy,
        elapsed_ms=config.join.elapsed,
        topic_prefix=config.kafka.topic_prefix,
        events_prefix=config.kafka.events_prefix,
        rules=_rules(config),
        parallelism=config.join.parallelism,
        plan=plan,
    )


def _rules(config: Config) -> dict[str, Any]:
    """What a later release adds to these sections counts until it is listed as free."""
    rules = {
        f"join.{name}": value
        for name, value in config.join.model_dump(mode="json").items()
        if name not in _FREE_AT_RESTART
    }
    for kind, spec in config.kinds.items():
        own = spec.model_dump(mode="json", exclude={"window"})
        rules |= {f"kinds.{kind}.{name}": value for name, value in own.items()}
    return rules


def read_shape(state_dir: Path) -> Shape | None:
    """What the last run here wrote; None before the first."""
    try:
        return msgspec.json.decode((state_dir / "shape.json").read_bytes(), type=Shape)
    except (OSError, msgspec.DecodeError):
        return None


def write_shape(state_dir: Path, shape: Shape) -> None:
    part = state_dir / "shape.json.part"
    part.write_bytes(msgspec.json.encode(shape) + b"\n")
    part.replace(state_dir / "shape.json")


def check_shape(before: Shape, now: Shape) -> None:
    """Raise JoinConfigChanged if state of shape `before` cannot go on under `now`.

    A kind may be added behind the others, if its window is not longer than the longest one so far;
    everything else of the shape stays. What is not in the shape may change at any restart.
    """
    told: list[str] = []
    for kind, window_ms in before.windows_ms.items():
        if kind not in now.windows_ms:
            told.append(f"kinds.{kind} is gone")
        elif now.windows_ms[kind] != window_ms:
            told.append(f"kinds.{kind}.window was {window_ms} ms, is {now.windows_ms[kind]} ms")
    longest_ms = max(before.windows_ms.values())
    told += [
        f"kinds.{kind}.window is {window_ms} ms, longer than any before ({longest_ms} ms)"
        for kind, window_ms in now.windows_ms.items()
        if kind not in before.windows_ms and window_ms > longest_ms
    ]
    common = [kind for kind in now.windows_ms if kind in before.windows_ms]
    if common != list(now.windows_ms)[: len(common)] or common != [
        kind for kind in before.windows_ms if kind in now.windows_ms
    ]:
        told.append(
            f"kinds were {', '.join(before.windows_ms)}, are {', '.join(now.windows_ms)}:"
            " a new one goes to the end"
        )
    for name, path in _PATHS.items():
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            told.append(f"{path} was {old!r}, is {new!r}")
    told += [
        f"{name} was {value!r}, is {now.rules[name]!r}"
        for name, value in before.rules.items()
        if name in now.rules and now.rules[name] != value
    ]
    if told:
        raise JoinConfigChanged("; ".join(told))


def check_parallelism(before: Shape, now: Shape, restored: SavedState) -> None:
    """Raise JoinConfigChanged where a job of fewer tasks would go on from a checkpoint.

    Beside a checkpoint lie transactions that were begun after it. The Kafka sink (5.0.0,
    FLINK-40626) takes such a one over by beginning it anew, but only under the ids that its tasks
    write to: those of a task that is no more would stay open, and hold up every reader until they
    time out. A job that stopped with a savepoint has none.
    """
    if now.parallelism < before.parallelism and not restored.is_savepoint:
        raise JoinConfigChanged(
            f"join.parallelism was {before.parallelism}, is {now.parallelism}: fewer tasks go on"
            " from a savepoint only; start it as it was, then stop it by"
            " `headwater down --savepoint`"
        )


_FREE_AT_RESTART = frozenset(
    {
        *("policy", "elapsed"),  # kept apart in the shape
        *("lateness", "idle_timeout", "checkpoint_interval", "transaction_timeout"),
        *("parallelism", "state_backend", "managed_memory_mb"),
    }
)
_PATHS = {
    "policy": "join.policy",
    "elapsed_ms": "join.elapsed (ms)",
    "topic_prefix": "kafka.topic_prefix",
    "events_prefix": "kafka.events_prefix",
}


def check_mode(state_dir: Path, *, bounded: bool) -> None:
    """Raise JoinModeChanged if the state here was made by a run of the other mode."""
    now = "bounded" if bounded else "unbounded"
    note = state_dir / "mode"
    if any(saved_states(state_dir)) and note.exists():
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


def _checkpoint_number(metadata: Path) -> int | None:
    """The checkpoint id in a `_metadata` file; None where there is none, or it is cut short."""
    try:
        with metadata.open("rb") as file:
            head = file.read(_HEAD.size)
    except OSError:
        return None
    if len(head) < _HEAD.size:
        return None
    magic, _, number = _HEAD.unpack(head)
    return int(number) if magic == _MAGIC else None

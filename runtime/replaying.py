"""`headwater replay`: history through the same join, and the same trainer, into a stack's shadow.

    home = DIR/replays/NAME     config.toml, join/ (state), store/ (with --train), report.json
    topics                      <topic_prefix>-NAME.*, on the same broker

Two ways. `replay_history`: events of a stretch of event time, from the raw topics or from files,
are written to raw topics of the shadow's own, joined to their end and audited. `replay_live`: the
shadow's join reads the live raw topics from their beginning; once it has what was there at the
start it stops with a savepoint, at source offsets that the report names. `headwater up --dir HOME`
goes on from there, exactly: the replayed join becomes the live one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from runtime.bounded_join import JoinVerbFailed, run_join
from runtime.child import spawn
from runtime.config_file import write_config
from runtime.history import FileHistory, TopicHistory, within
from runtime.jars import flink_jars, require_java
from runtime.producing import EventProducer
from runtime.shadow import delete_shadow, existing_topics, shadow_config
from settings.config import Config
from stream.savepoint import take_savepoint
from topics.admin import ensure_topics
from topics.lag import committed_offsets
from topics.names import EVENT_TOPICS, join_group
from topics.scan import Partition, record_ends

_FOREVER_MS = 2**62
_POLL_SECONDS = 0.3


class ReplayExists(RuntimeError):
    """The name is taken. Operator action: another --into, or --replace."""


class ReplayReport(msgspec.Struct, kw_only=True):
    """What a replay did."""

    name: str
    topic_prefix: str
    home: str
    events: dict[str, int]
    """Events taken, by stream."""
    refused: int = 0
    """Lines over events.bytes_max."""
    balanced: bool | None = None
    audit: dict[str, Any] | None = None
    hand_over: dict[str, dict[int, int]] | None = None
    """`replay --live`: event topic -> partition -> the first offset that the replay has not taken,
    where the live job begins."""
    savepoint: str | None = None
    trained: bool = False
    seconds: float = 0.0


def shadow_prefix(config: Config, name: str) -> str:
    """Topic prefix of the replay `name` of this stack."""
    return f"{config.kafka.topic_prefix}-{name}"


def shadow_home(directory: Path, name: str) -> Path:
    return directory / "replays" / name


def prepare(
    config: Config, bootstrap: str, home: Path, name: str, *, live: bool, replace: bool
) -> Config:
    """The shadow's config; topics and directory are made. Raises ReplayExists, TopicError."""
    prefix = shadow_prefix(config, name)
    shadow = shadow_config(config, prefix, reads_live=live, bounded=not live)
    shadow = shadow.model_copy(
        update={"kafka": shadow.kafka.model_copy(update={"bootstrap": bootstrap})}
    )
    shared = set(map(config.topic, EVENT_TOPICS))
    taken = [topic for topic in existing_topics(shadow, bootstrap) if topic not in shared]
    if (taken or home.exists()) and not replace:
        raise ReplayExists(
            f"a replay {name!r} is there already ({home}, {len(taken)} topics): choose another"
            " --into, or give --replace"
        )
    delete_shadow(shadow, bootstrap)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    write_config(shadow, home / "config.toml", comment=f"The replay {name} of another stack.")
    ensure_topics(shadow, bootstrap)
    return shadow


def replay_history(
    shadow: Config,
    source: Config,
    bootstrap: str,
    home: Path,
    *,
    files: tuple[Path, Path] | None,
    between_ms: tuple[int | None, int | None],
    arrival_order: bool,
    say: Callable[[str], None],
) -> ReplayReport:
    """Join a stretch of history to its end. Raises ToolMissing, TopicError, OSError,
    JoinVerbFailed."""
    require_java()
    flink_jars()
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="headwater-replay-"))
    try:
        say("reading history")
        history = (
            TopicHistory(source, bootstrap, folder)
            if files is None
            else FileHistory(*files, folder)
        )
        lines = history.lines(arrival_order=arrival_order)
        if between_ms != (None, None):
            from_ms, to_ms = between_ms
            lines = within(lines, from_ms or 0, to_ms or _FOREVER_MS, shadow.window_ms_max)
        producer = EventProducer(shadow, bootstrap)
        refused = sum(not producer.send(stream, line) for stream, line in lines)
        producer.flush()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say("joining")
    run_join(shadow, bootstrap, home, home)
    say("auditing")
    from stream.audit import audit  # polars loads slowly

    report = audit(shadow, bootstrap, bounded=True)
    return ReplayReport(
        name=home.name,
        topic_prefix=shadow.kafka.topic_prefix,
        home=str(home),
        events=dict(producer.acknowledged),
        refused=refused,
        balanced=report.balanced,
        audit=msgspec.to_builtins(report),
        seconds=time.monotonic() - started,
    )


def replay_live(
    shadow: Config, bootstrap: str, home: Path, say: Callable[[str], None]
) -> ReplayReport:
    """Join the live topics' past and stop at exact offsets. Raises as `replay_history`, and
    SavepointFailed."""
    require_java()
    flink_jars()
    started = time.monotonic()
    ends = record_ends(shadow, bootstrap, EVENT_TOPICS)
    committed = committed_offsets(shadow, bootstrap, join_group(shadow), EVENT_TOPICS)
    say("joining what is there")
    with _unbounded_join(bootstrap, home) as join:
        while not _has_reached(committed(), ends):
            join.require_running()
            time.sleep(_POLL_SECONDS)
        say("stopping at exact offsets")
        savepoint = take_savepoint(home / "join", stop=True)
        join.wait()
    reached = _settled(committed)
    offsets: dict[str, dict[int, int]] = {name: {} for name in EVENT_TOPICS}
    for (name, partition), offset in sorted(reached.items()):
        offsets[name][partition] = offset
    return ReplayReport(
        name=home.name,
        topic_prefix=shadow.kafka.topic_prefix,
        home=str(home),
        events={name: sum(own.values()) for name, own in offsets.items()},
        hand_over=offsets,
        savepoint=str(savepoint),
        seconds=time.monotonic() - started,
    )


def train_replay(bootstrap: str, home: Path) -> None:
    """The trainer over the replay's samples, to their ends, publishing under its prefix; its store
    is `home/store`. Raises JoinVerbFailed."""
    command = [
        *(sys.executable, "-P", "-m", "trainer", "--store", str(home / "store"), "--until-end"),
        *("--config", str(home / "config.toml"), "--bootstrap", bootstrap),
    ]
    log = home / "trainer.log"
    with log.open("wb") as out:
        code = subprocess.run(command, check=False, stdout=out, stderr=out).returncode
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        raise JoinVerbFailed(f"training ended with exit code {code}: {last} (log: {log})")


class _unbounded_join:  # noqa: N801  a context manager, used as a function
    """`python -m stream` over the live topics, ended with the block."""

    def __init__(self, bootstrap: str, home: Path) -> None:
        self._command = [
            *(sys.executable, "-P", "-m", "stream", "--bootstrap", bootstrap),
            *("--config", str(home / "config.toml"), "--state-dir", str(home / "join")),
        ]
        self._log = home / "join.log"

    def __enter__(self) -> _unbounded_join:
        with self._log.open("wb") as log:
            self._process = spawn(self._command, log)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def require_running(self) -> None:
        """Raises JoinVerbFailed with what it last said."""
        if self._process.poll() is not None:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1] if lines else "it said nothing"
            raise JoinVerbFailed(f"the join has ended: {last} (log: {self._log})")

    def wait(self) -> None:
        """Until it has ended by itself, as after a savepoint."""
        self._process.wait(60)


def _has_reached(at: Mapping[Partition, int], ends: Mapping[Partition, int]) -> bool:
    return all(at.get(where, 0) >= end for where, end in ends.items())


def _settled(read: Callable[[], Mapping[Partition, int]]) -> Mapping[Partition, int]:
    """Offsets once the last checkpoint's commit of them has arrived."""
    before: Mapping[Partition, int] = {}
    for _ in range(20):
        found = dict(read())
        if found == before:
            return found
        before = found
        time.sleep(0.5)
    return before

"""What holds publication, and for how long: an operator's rollback, or the gate. Learning goes on.

State (space `steering`) is durable with the commit that it takes effect in: the offset of the next
command, the version rolled back to, the gate's reason, the manifest of what readers hold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import structlog

from embedding_store.store import EmbeddingStore
from topics.control import Command
from topics.errors import TopicError
from topics.history import OldVersion
from topics.manifest import Manifest, decode_manifest, encode_manifest
from trainer import metrics
from trainer.commands import Commands

SPACE = "steering"
ReadOld = Callable[[int, Callable[[], bool]], OldVersion]
"""(version, stopped) -> what changed since; `topics.history.read_old_version`."""
_log = structlog.get_logger()


class _State(msgspec.Struct):
    offset: int = 0
    """Of the next command."""
    rollback: int | None = None
    """The version that readers are held at."""
    is_repeated: bool = False
    """Its content is in the outbox, or out."""
    held: str | None = None
    """The gate's reason while it holds."""
    held_ms: int = 0
    """Event time since when."""
    note: str | None = None
    """What the next version's manifest says of it."""


class Steering:
    """Used by the learner's thread; a thread of its own reads what a rollback repeats."""

    def __init__(
        self, store: EmbeddingStore, commands: Commands | None, read_old: ReadOld | None
    ) -> None:
        self._store, self._commands, self._read_old = store, commands, read_old
        raw = store.get(SPACE, b"state")
        self._state = _State() if raw is None else msgspec.json.decode(raw, type=_State)
        raw = store.get(SPACE, b"newest")
        self.newest: Manifest | None = None if raw is None else decode_manifest(raw)
        """Of the version cut last: what readers hold, or will."""
        self._reading: threading.Thread | None = None
        self._old: OldVersion | None = None
        self._gone: TopicError | None = None
        self._closing = False
        self._tell()

    @staticmethod
    def stored_offset(store: EmbeddingStore) -> int:
        """Of the next command, as the newest commit has it."""
        raw = store.get(SPACE, b"state")
        return 0 if raw is None else msgspec.json.decode(raw, type=_State).offset

    @property
    def rollback(self) -> int | None:
        """The version that readers are held at, if any."""
        return self._state.rollback

    @property
    def waits_for_content(self) -> bool:
        """A rollback whose content is not cut yet; it is read once nothing waits to be sent."""
        return self._state.rollback is not None and not self._state.is_repeated

    def news(self, is_drained: Callable[[], bool]) -> bool:
        """Whether a commit has something to do. `is_drained`: all versions cut are readable."""
        if self.waits_for_content and self._reading is None and is_drained():
            self._read(self._state.rollback or 0)
        if self._old is not None or self._gone is not None:
            return True
        return self._commands is not None and self._commands.waiting()

    def obey(self) -> list[Command]:
        """Take the commands that are there; returns those that are about content."""
        if self._gone is not None:
            _log.error("rollback_refused", reason=str(self._gone))
            self._gone = self._reading = None
            self._let_go("a rollback that could not be done")
        others: list[Command] = []
        for offset, command in self._commands.take() if self._commands is not None else ():
            self._state.offset = offset
            _log.info("command", verb=command.verb, version=command.version)
            metrics.COMMANDS.labels(command.verb).inc()
            if command.verb == "rollback" and command.version is not None:
                self._forget_reading()
                self._state.rollback, self._state.is_repeated = command.version, False
            elif command.verb == "release":
                self._forget_reading()
                if self._state.rollback is not None:
                    self._let_go(f"held at version {self._state.rollback} by a rollback")
            else:
                others.append(command)
        self._tell()
        return others

    def repeated(self) -> OldVersion | None:
        """What a rollback publishes now; once."""
        old, self._old = self._old, None
        if old is not None:
            self._reading = None
            self._state.is_repeated = True
        return old

    def hold(self, reason: str, now_ms: int) -> bool:
        """The gate is closed; whether it was open before."""
        if self._state.held is not None:
            return False
        self._state.held, self._state.held_ms = reason, now_ms
        _log.warning("publication_held", reason=reason)
        metrics.HOLDS.inc()
        self._tell()
        return True

    def open(self, now_ms: int) -> str | None:
        """The gate is open; what the manifest says of a hold that ends with it."""
        state = self._state
        if state.held is not None:
            state.note = f"held from event time {state.held_ms} to {now_ms}: {state.held}"
            state.held = None
            _log.info("publication_goes_on", reason=state.note)
            self._tell()
        note, state.note = state.note, None
        return note

    def cut(self, manifest: Manifest) -> None:
        """This is what readers will hold."""
        self.newest = manifest
        self._store.put(SPACE, b"newest", encode_manifest(manifest))

    def stage(self) -> None:
        """Durable with the next commit."""
        self._store.put(SPACE, b"state", msgspec.json.encode(self._state))

    def close(self) -> None:
        """Give up a reading; the next start begins it anew."""
        self._forget_reading()

    def _let_go(self, what: str) -> None:
        self._state.rollback, self._state.is_repeated = None, False
        self._state.note = f"released: {what}"

    def _tell(self) -> None:
        metrics.HELD.labels("rollback").set(self._state.rollback is not None)
        metrics.HELD.labels("gate").set(self._state.held is not None)

    def _forget_reading(self) -> None:
        reading, self._closing = self._reading, True
        if reading is not None:
            reading.join()
        self._reading, self._old, self._gone, self._closing = None, None, None, False

    def _read(self, version: int) -> None:
        read_old = self._read_old

        def read() -> None:
            try:
                assert read_old is not None, "a run without a broker gets no commands"
                self._old = read_old(version, lambda: self._closing)
            except TopicError as error:
                self._gone = error

        self._reading = threading.Thread(target=read, name="old-version", daemon=True)
        self._reading.start()

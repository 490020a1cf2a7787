"""One user's vector before and after a conversion of theirs, watched from a reader's side."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from downstream.reader import RepresentationReader
from downstream.table import Change
from runtime.producing import NOT_READABLE
from runtime.sources.traffic import TrafficEvent

_SHOWN_DIMS = 6
_PATIENCE_S = 20.0
_PAUSE_S = 3.0


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What one conversion did to its user's vector. `seconds` is from sending it to reading the
    vector that knows of it."""

    user_id: str
    kind: str
    before: list[float]
    after: list[float]
    before_version: int
    after_version: int
    change_norm: float
    vector_norm: float
    seconds: float


class _Conversion(msgspec.Struct):
    user_id: str
    kind: str
    event_ms: int
    impression_id: str | None = None


class Spotlight:
    """Follows one conversion at a time. Thread-safe: events are seen by the thread that sends
    them, vectors by the reader's."""

    def __init__(self, *, named_only: bool = True) -> None:
        """`named_only` is False for logs whose conversions never name their impression."""
        self._named_only = named_only
        self._decode = msgspec.json.Decoder(_Conversion).decode
        self._reader: RepresentationReader | None = None
        self._lock = threading.Lock()
        self._waiting: tuple[_Conversion, float, np.ndarray[tuple[int], np.dtype[np.float32]], int]
        self._is_waiting = False
        self._resume_at = 0.0
        self.sighting: Sighting | None = None
        """The newest one."""

    def watch(self, reader: RepresentationReader) -> None:
        """The reader that calls `on_applied`."""
        self._reader = reader

    def on_send(self, event: TrafficEvent) -> None:
        """An event is about to be sent: follow it if it is a conversion of a user with a vector."""
        reader, now = self._reader, time.time()
        if event.stream != "conversions" or reader is None or now < self._resume_at:
            return
        with self._lock:
            if self._is_waiting and now - self._waiting[1] < _PATIENCE_S:
                return
        try:
            conversion = self._decode(event.line)
        except NOT_READABLE:
            return
        if self._named_only and conversion.impression_id is None:
            return  # it waits for the watermark first, which is not what is timed here
        if conversion.event_ms != event.due_ms:
            return  # late or sent twice: it may never reach a label
        held = reader.get("user", conversion.user_id)
        if held is None or held.vector is None:
            return
        with self._lock:
            self._waiting = (conversion, now, held.vector, held.version)
            self._is_waiting = True

    def on_applied(self, changes: Sequence[Change], readable_seconds: float) -> None:
        """A version can be read: is the followed user's vector in it, and new enough?"""
        with self._lock:
            if not self._is_waiting or self._reader is None:
                return
            conversion, sent_at, before, version = self._waiting
            if not any(
                change.id == conversion.user_id
                and change.kind == "user"
                and change.produced_ms >= int(sent_at * 1000)
                for change in changes
            ):
                return
            self._is_waiting = False
        after = self._reader.get("user", conversion.user_id)
        if after is None or after.vector is None:
            return
        norm = float(np.linalg.norm(before))
        self.sighting = Sighting(
            user_id=conversion.user_id,
            kind=conversion.kind,
            before=[round(x, 4) for x in before[:_SHOWN_DIMS].tolist()],
            after=[round(x, 4) for x in after.vector[:_SHOWN_DIMS].tolist()],
            before_version=version,
            after_version=after.version,
            change_norm=round(float(np.linalg.norm(after.vector - before)), 5),
            vector_norm=round(norm, 5),
            seconds=round(readable_seconds - sent_at, 3),
        )
        self._resume_at = time.time() + _PAUSE_S


def describe(sighting: Sighting) -> list[str]:
    """Three lines for a person."""

    def numbers(values: list[float]) -> str:
        return " ".join(f"{value:+.4f}" for value in values) + " ..."

    return [
        f"user {sighting.user_id}: vector changed {sighting.seconds:.2f} s after their "
        f"{sighting.kind} (by {sighting.change_norm:.4f}, length {sighting.vector_norm:.4f})",
        f"  before, version {sighting.before_version:>4}: {numbers(sighting.before)}",
        f"  after,  version {sighting.after_version:>4}: {numbers(sighting.after)}",
    ]

"""Publishing beside the learning: a thread that sends committed versions, in their order.

It is given a version only after the commit that put it into the outbox, and says what is readable;
the learner marks that done in its next commit. So the thread adds nothing to what a crash costs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from topics.manifest import Manifest
from topics.names import Kind
from topics.publisher import Record
from trainer import metrics
from trainer.errors import SourceLost
from trainer.source import retry_while_away

WAITING_MAX = 2
"""Versions between commit and publication. With more the learner waits: a version that readers get
late is worth less than the next one, and each holds its records in memory."""
_log = structlog.get_logger()


class VersionSink(Protocol):
    """Where versions go: `topics.publisher.Publisher`, or a list in a bounded run."""

    def publish(self, version: int, records: list[Record], manifest: Manifest) -> Manifest:
        """Make the version readable, whole; raises TopicUnavailable to be asked again."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version as it was committed."""

    records: list[Record]
    manifest: Manifest
    produced_ms: Mapping[Kind, Sequence[int]] = field(default_factory=dict)
    """For freshness; empty for one that an earlier process cut."""


class Publication:
    """Owns the thread; used by the learner's thread alone."""

    def __init__(self, sink: VersionSink, stopping: Callable[[], bool]) -> None:
        self._sink, self._stopping = sink, stopping
        self._waiting: queue.Queue[Version | None] = queue.Queue(WAITING_MAX)
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="publication", daemon=True)
        self._thread.start()

    def offer(self, version: Version) -> None:
        """Send it after those before it; waits while WAITING_MAX wait already.

        Raises what publishing an earlier one raised.
        """
        while True:
            self._raise_error()
            try:
                self._waiting.put(version, timeout=0.1)
            except queue.Full:
                continue
            return

    def published(self) -> list[int]:
        """Versions that became readable since the last call. Raises as `offer`."""
        versions: list[int] = []
        while not self._done.empty():
            versions.append(self._done.get())
        if not versions:
            self._raise_error()
        return versions

    def finish(self) -> None:
        """Wait until everything offered was sent, or left to the outbox. Raises as `offer`."""
        self._end()
        self._raise_error()

    def close(self) -> None:
        """Give up what waits; the outbox holds it."""
        self._closing = True
        self._end()

    def _end(self) -> None:
        while self._thread.is_alive():
            try:
                self._waiting.put(None, timeout=0.1)
            except queue.Full:
                continue
            self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (version := self._waiting.get()) is not None:
                if not self._closing and not self._publish(version):
                    self._closing = True  # the next would overtake it
        except BaseException as error:  # noqa: BLE001  raised again on the learner's thread
            self._error = error

    def _publish(self, version: Version) -> bool:
        started, number = time.perf_counter(), version.manifest.version
        try:
            retry_while_away(
                f"publishing version {number}",
                lambda: self._sink.publish(number, version.records, version.manifest),
                lambda: self._closing or self._stopping(),
            )
        except SourceLost:
            if not (self._closing or self._stopping()):
                raise
            _log.warning("version_left_in_outbox", version=number)
            return False
        self._done.put(number)
        metrics.STAGE.labels("publish").observe(time.perf_counter() - started)
        metrics.observe_published(number, version.produced_ms)
        return True

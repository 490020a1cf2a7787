"""Sends a source's traffic into a stack at a chosen speed, from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from runtime.producing import EventProducer
from runtime.sources.traffic import Source, TrafficEvent

OnSend = Callable[[TrafficEvent], None]
_LONGEST_NAP_S = 0.1


class Replay(threading.Thread):
    """Started, it sends as many events as `allow` was called for, then, once `release`d, the rest
    until `end`.

    The few events before the release pay for what the stack does once (the first batch, the first
    version), so that the many after it show how it runs. `on_send` is called before each event.
    What went wrong in the thread is raised by `check`.
    """

    def __init__(
        self,
        source: Source,
        producer: EventProducer,
        *,
        speedup: float,
        truth_path: Path | None,
        on_send: OnSend,
    ) -> None:
        super().__init__(name="replay", daemon=True)
        self._source = source
        self._producer = producer
        self.speedup = speedup
        """Event time over wall clock time; may be changed until `release`."""
        self._truth_path = truth_path
        self._on_send = on_send
        self._allowed = threading.Semaphore(0)
        self._released = threading.Event()
        self._ending = threading.Event()
        self._error: Exception | None = None
        self.is_exhausted = False
        """The source has no more events."""

    @property
    def sent(self) -> Counter[str]:
        """Events sent by stream."""
        return self._producer.sent

    def allow(self, events: int) -> None:
        """Let it send this many more, without pauses."""
        self._allowed.release(events)

    def release(self) -> None:
        """Send on at full speed."""
        self._released.set()
        self._allowed.release()

    def end(self) -> None:
        """Stop sending and wait until everything sent is acknowledged. Raises TopicError."""
        self._ending.set()
        self.release()
        if self.ident is not None:
            self.join()
        self.check()

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        try:
            if self._truth_path is None:
                self._send_all(None)
            else:
                with self._truth_path.open("wb") as truth:
                    self._send_all(truth)
        except Exception as error:  # noqa: BLE001  whatever it is, the main thread must be told
            self._error = error

    def _send_all(self, truth: BinaryIO | None) -> None:
        first_ms: int | None = None
        started = 0.0
        for event in self._source.events():
            if not self._released.is_set():
                self._allowed.acquire()
            elif first_ms is None:
                first_ms, started = event.due_ms, time.monotonic()
            else:
                due = started + (event.due_ms - first_ms) / 1000 / self.speedup
                while not self._ending.is_set() and (left := due - time.monotonic()) > 0:
                    self._producer.poll()
                    time.sleep(min(left, _LONGEST_NAP_S))
            if self._ending.is_set():
                break
            self._on_send(event)
            self._producer.send(event.stream, event.line)
            if truth is not None and event.truth is not None:
                truth.write(event.truth + b"\n")
        else:
            self.is_exhausted = True
        self._producer.flush()

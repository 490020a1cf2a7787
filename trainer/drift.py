"""Alarms on progressive metrics: ADWIN on normalised entropy, Page-Hinkley on calibration.

A value per task and closed window of event time, or per as many windows as it takes for
POSITIVES_MIN positives: fewer are noise. What each window said when it closed is kept (space
`drift`), and the detectors are a function of that alone: a restart feeds them the same values.
"""

from __future__ import annotations

import importlib
import math
import threading
from dataclasses import dataclass
from typing import Any

import msgspec

from embedding_store.store import EmbeddingStore
from trainer.evaluation import ALL_TIME, Sums

POSITIVES_MIN = 200
SPACE = "drift"


@dataclass(frozen=True, slots=True)
class Drift:
    """One alarm."""

    task: str
    measure: str
    """`ne` or `pcoc`."""
    window_ms: int
    """Start of the window at whose end it was raised."""


class DriftMonitor:
    """Detectors per task over one store."""

    def __init__(self, store: EmbeddingStore, tasks: tuple[str, ...]) -> None:
        self._store = store
        self._tasks = tasks
        self._detectors: dict[tuple[str, str], Any] = {}
        self._collected = {task: Sums() for task in tasks}
        self._loading: threading.Thread | None = None
        self.closed_to = ALL_TIME
        """The newest window taken."""
        self.alarms: list[Drift] = []
        """Every alarm, oldest first."""
        for key, raw in store.scan(SPACE):
            stored = msgspec.msgpack.decode(raw, type=dict[str, bytes])
            self._take(int(key), {t: Sums.load(stored[t]) for t in tasks if t in stored})

    def close_window(self, window_ms: int, sums: dict[str, Sums]) -> list[Drift]:
        """Take a closed window's sums per task, in order of time; the alarms that it raises.

        Durable with the next commit.
        """
        dumped = {task: own.dump() for task, own in sums.items()}
        self._store.put(SPACE, b"%020d" % window_ms, msgspec.msgpack.encode(dumped))
        return self._take(window_ms, sums)

    def prepare(self) -> None:
        """Load the detectors beside the learning, before the first window closes: that takes
        seconds, which every vector of the time would otherwise wait for. May be called often."""
        if self._loading is None:
            self._loading = threading.Thread(
                target=importlib.import_module, args=("river.drift",), name="drift", daemon=True
            )
            self._loading.start()

    def newest(self, task: str) -> int | None:
        """Window of the task's newest alarm."""
        return max((a.window_ms for a in self.alarms if a.task == task), default=None)

    def _take(self, window_ms: int, sums: dict[str, Sums]) -> list[Drift]:
        raised: list[Drift] = []
        self.closed_to = window_ms
        if not self._detectors:
            self._detectors = _detectors(self._tasks)
        for task, own in sums.items():
            collected = self._collected[task]
            collected.merge(own)
            if collected.positives < POSITIVES_MIN:
                continue
            self._collected[task] = Sums()
            report = collected.report()
            ne, pcoc = report["ne"], report["pcoc"]
            # Of the ratio, too high and too low by the same factor are equally far.
            values = {"ne": ne, "pcoc": math.log(pcoc) if pcoc else None}
            for measure, value in values.items():
                detector = self._detectors[task, measure]
                if value is not None:
                    detector.update(value)
                    if detector.drift_detected:
                        raised.append(Drift(task, measure, window_ms))
        self.alarms += raised
        return raised


def _detectors(tasks: tuple[str, ...]) -> dict[tuple[str, str], Any]:
    """(task, measure) -> detector."""
    from river import drift  # takes seconds, see `prepare`: not at every start

    found: dict[tuple[str, str], Any] = {}
    for task in tasks:
        settings = {"clock": 1, "grace_period": 6, "min_window_length": 3}
        found[task, "ne"] = drift.ADWIN(**settings)  # type: ignore[no-untyped-call]
        found[task, "pcoc"] = drift.PageHinkley(
            min_instances=6, delta=0.02, threshold=0.6, alpha=0.999
        )
    return found

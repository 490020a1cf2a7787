"""How old the newest event in a vector is when a reader in another process can first return it.

    headwater_representation_freshness_seconds{kind}   histogram

Observed once per published vector whose newest event is newer than that of the entity's vector
before it, so sweeps, rollbacks and re-publications do not count, nor does what a bootstrap reads.
The clock of the produce time is the producer's: across machines their skew is part of the figure.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
from prometheus_client import REGISTRY, CollectorRegistry, Histogram

from downstream.table import Change
from topics.names import KINDS, Kind

BUCKETS_SECONDS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.4, 3, 4, 5, 7.5, 10, 15, 20, 30, 45, 60)
_OBSERVATIONS_KEPT = 100_000


class Freshness:
    """The histogram, and the newest 100,000 observations per kind exactly. Thread-safe."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._histogram = Histogram(
            "headwater_representation_freshness_seconds",
            "Readable by a read_committed reader, minus produce time of the newest event in it",
            ["kind"],
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self._lock = threading.Lock()
        self._kept: dict[Kind, deque[float]] = {
            kind: deque(maxlen=_OBSERVATIONS_KEPT) for kind in KINDS
        }
        self._counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)

    def observe(self, changes: Sequence[Change], readable_seconds: float) -> None:
        """Take a version's changes, readable since `readable_seconds` (Unix). A reader
        calls this as its `on_applied`."""
        with self._lock:
            for change in changes:
                if change.has_newer_event:
                    age = readable_seconds - change.produced_ms / 1000
                    self._histogram.labels(change.kind).observe(age)
                    self._kept[change.kind].append(age)
                    self._counts[change.kind] += 1

    def quantiles(self) -> dict[str, dict[str, float]]:
        """{kind: {"p50", "p99", "max", "count"}} in seconds, over the observations kept; kinds
        without any are left out."""
        with self._lock:
            kept = {kind: np.fromiter(ages, float) for kind, ages in self._kept.items() if ages}
            counts = dict(self._counts)
        found: dict[str, dict[str, float]] = {}
        for kind, ages in kept.items():
            p50, p99 = np.percentile(ages, (50, 99)).tolist()
            found[kind] = {
                "p50": p50,
                "p99": p99,
                "max": float(ages.max()),
                "count": counts[kind],
            }
        return found

    def page(self) -> bytes:
        """`quantiles` as JSON, for the metrics port's /freshness."""
        return json.dumps(self.quantiles()).encode()

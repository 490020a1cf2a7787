"""The whole journey on one machine: start a stack, send traffic, watch it, drain it, audit it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from downstream.reader import RepresentationReader
from runtime.demo_view import DemoView
from runtime.producing import EventProducer
from runtime.readout import Readout, rates, read_out
from runtime.replay import Replay
from runtime.sources.traffic import Source
from runtime.spotlight import Spotlight
from runtime.stack import Stack
from runtime.supervisor import StackFailed
from settings.config import Config
from settings.load import load_config

WARM_UP = (20, 40, 40, 40)
"""Events sent before the traffic proper: each lot once the lot before has changed the vectors."""
FIRST_VECTOR_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 180.0
_TICK_S = 1.0


def demo_config(source: Source) -> Config:
    """The config that `source` decides, under policy `correct` with elapsed = 0. The environment
    may still set what the source leaves open. Raises ConfigError."""
    values: dict[str, Any] = {
        "join": {"policy": "correct", "elapsed": "0s"},
        # A minute's traffic is few samples, so batches are cut by time, not by count: many small
        # steps while the trainer keeps up, larger ones to catch up after a stall.
        "trainer": {
            "batch_samples_max": 128,
            "evaluation_window": "15s" if source.name == "simulated" else "24h",
        },
    }
    for section, content in source.config_values().items():
        if isinstance(content, Mapping):
            values[section] = {**values.get(section, {}), **content}
        else:
            values[section] = content
    return load_config(None, flags=dict(_flags(values))).config


def _flags(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flags(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


@dataclass(slots=True)
class _Observed:
    """What was seen while traffic ran."""

    now: Readout
    rates: dict[str, float]
    lags: defaultdict[str, list[int]]
    sent_before: int = 0
    sent_rate: float = 0.0


class Demo:
    """One run. `run()` does it all and returns the report; the stack is up only meanwhile."""

    def __init__(
        self,
        source: Source,
        directory: Path,
        *,
        seconds: float,
        speedup: float,
        view: DemoView,
    ) -> None:
        self._source = source
        self._seconds = seconds
        self._speedup = speedup
        self._view = view
        self._config = demo_config(source)
        self._stack = Stack(directory, self._config)
        self._spotlight = Spotlight(named_only=source.name != "deskdrop")
        self._restarts_told: Counter[str] = Counter()
        self._seen = _Observed(Readout(at=time.monotonic()), {}, defaultdict(list))

    def run(self) -> dict[str, Any]:
        """The report. Raises what Stack raises, and StackFailed when nothing comes out."""
        started = time.monotonic()
        with self._stack:
            self._start()
            up_s = time.monotonic() - started
            self._view.notice(f"every process is up after {up_s:.1f} s")
            producer = EventProducer(self._config, self._stack.bootstrap)
            replay = Replay(
                self._source,
                producer,
                speedup=self._speedup,
                truth_path=self._stack.directory / "truth.jsonl"
                if self._source.name == "simulated"
                else None,
                on_send=self._spotlight.on_send,
            )
            with RepresentationReader(
                self._config,
                self._stack.bootstrap,
                ("user",),
                on_applied=self._spotlight.on_applied,
            ) as reader:
                try:
                    first_s = self._first_vector(replay, reader, started)
                    traffic_s = self._traffic(replay)
                finally:
                    replay.end()
                self._drain(replay, reader)
                return self._report(
                    replay,
                    reader,
                    {
                        "seconds_to_up": round(up_s, 1),
                        "seconds_to_first_vector": round(first_s, 1),
                        "seconds_of_traffic": round(traffic_s, 1),
                    },
                )

    def _start(self) -> None:
        self._stack.start()
        assert self._stack.supervisor is not None
        while not self._stack.supervisor.all_ready:
            self._poll()
            self._view.show_start("starting", self._stack.run)
            time.sleep(0.1)

    def _first_vector(self, replay: Replay, reader: RepresentationReader, started: float) -> float:
        """Send a few events, wait until a reader has a vector; seconds since the start."""
        replay.start()
        first_s = 0.0
        for events in WARM_UP:
            held = reader.version
            replay.allow(events)
            deadline = time.monotonic() + FIRST_VECTOR_TIMEOUT_S
            while not reader.count("user") or reader.version == held:
                self._look("first events", replay)
                if time.monotonic() > deadline:
                    raise StackFailed(
                        f"nothing was published within {FIRST_VECTOR_TIMEOUT_S:g} s; the logs are "
                        f"in {self._stack.directory / 'logs'}"
                    )
            if not first_s:
                first_s = time.monotonic() - started
                self._view.notice(f"first vector after {first_s:.1f} s")
        self._spotlight.watch(reader)
        self._view.notice("traffic runs")
        return first_s

    def _traffic(self, replay: Replay) -> float:
        replay.release()
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self._seconds and not replay.is_exhausted:
            self._look(f"traffic, {passed:.0f} of {self._seconds:.0f} s", replay)
        return time.monotonic() - began

    def _drain(self, replay: Replay, reader: RepresentationReader) -> None:
        """Wait until what was sent is judged, learnt and published, or the time is over."""
        self._view.notice("traffic has ended; draining")
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        quiet = 0
        while quiet < 3 and time.monotonic() < deadline:
            before = self._seen.now
            self._look("draining", replay)
            now = self._seen.now
            still = before.events == now.events and before.learned == now.learned
            caught_up = not any(now.lag_records.values()) and reader.version == now.version
            quiet = quiet + 1 if still and caught_up else 0

    def _look(self, phase: str, replay: Replay) -> None:
        """One tick: poll the processes, read their numbers, show them."""
        tick = time.monotonic() + _TICK_S
        while True:
            self._poll()
            replay.check()
            left = tick - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, 0.1))
        seen, before = self._seen, self._seen.now
        seen.now = read_out(self._stack.run)
        seen.rates = rates(before, seen.now)
        sent = sum(replay.sent.values())
        seen.sent_rate = (sent - seen.sent_before) / (seen.now.at - before.at)
        seen.sent_before = sent
        for group, lag in seen.now.lag_records.items():
            seen.lags[group].append(lag)
        self._view.show(
            phase,
            self._stack.run,
            out=seen.now,
            per_second=seen.rates,
            produced=seen.sent_rate,
            sighting=self._spotlight.sighting,
        )

    def _poll(self) -> None:
        self._stack.poll()
        for name, child in self._stack.run.children.items():
            if child.restarts > self._restarts_told[name]:
                self._restarts_told[name] = child.restarts
                self._view.notice(f"{name} ended and is restarted: {child.reason}")

    def _report(
        self, replay: Replay, reader: RepresentationReader, seconds: dict[str, float]
    ) -> dict[str, Any]:
        from stream.audit import audit  # polars loads slowly; only the end needs it

        self._view.notice("auditing: the join is recomputed from the raw topics")
        audited = msgspec.to_builtins(audit(self._config, self._stack.bootstrap))
        now, manifest = self._seen.now, reader.manifest
        sent = dict(replay.sent)
        best = self._spotlight.sighting
        evaluation = (
            msgspec.to_builtins(manifest.evaluation) if manifest is not None else now.progressive
        )
        children = self._stack.run.children
        return {
            "source": self._source.name,
            "speedup": self._speedup,
            **seconds,
            "events": {
                **sent,
                "per_second": round(sum(sent.values()) / max(seconds["seconds_of_traffic"], 1), 1),
                "learned": now.learned,
            },
            "audit": audited,
            "freshness_seconds": {
                kind: {name: round(value, 3) for name, value in found.items()}
                for kind, found in now.freshness_seconds.items()
            },
            "lag_records": {
                group: {
                    "p50": float(np.percentile(lags, 50)),
                    "p99": float(np.percentile(lags, 99)),
                    "last": lags[-1],
                }
                for group, lags in self._seen.lags.items()
            },
            "versions_published": 0 if manifest is None else manifest.version,
            "vectors": {"user": reader.count("user")},
            "progressive": evaluation,
            "restarts": sum(child.restarts for child in children.values()),
            "restart_reasons": {n: c.reason for n, c in children.items() if c.restarts},
            "one_user": None if best is None else msgspec.to_builtins(best),
            "directory": str(self._stack.directory),
        }

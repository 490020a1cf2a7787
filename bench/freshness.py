"""From a conversion to its user's vector: how long until another process can read it.

A real stack (`headwater up`, policy `correct`, elapsed 0) under simulated traffic at half of its
peak load: before, a burst of events is sent at once, and the peak is what the stack brings from the
first event sent to the version that contains the last one.
For every conversion that names its impression: the clock starts when it is handed to the Kafka
client, and stops when this process's reader first serves a version that contains it. A version
contains a conversion when its manifest's source offsets lie beyond the sample that brought it: that
is looked up in the topics afterwards, nothing is guessed from times.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Message
from measuring import config_of, run_benchmark, say, spread

from downstream.reader import RepresentationReader
from downstream.table import Change
from runtime.config_file import write_config
from runtime.producing import EventProducer
from runtime.replay import Replay
from runtime.run_state import RunState, read_run
from runtime.scrape import page, scrape
from runtime.sources.simulated import SimulatedTraffic
from runtime.sources.traffic import TrafficEvent
from settings.config import Config
from topics.names import SAMPLES
from topics.scan import end_offsets, read_to_end

RATE = 200.0
"""Impressions per second of event time; how fast that goes by is decided by the peak."""
BURST, BURST_QUICK = (4_000, 16_000), (1_000, 3_000)
"""Events sent at once: to warm up, then timed."""
QUIET_SECONDS = 2.0
"""Without a new sample: the join has done with a burst."""
WARM_UP = (20, 40, 40, 40)
"""Events sent before the traffic, each lot once the lot before is published."""
START_TIMEOUT_S = 180.0
DRAIN_TIMEOUT_S = 60.0
STAGES = {
    "join": "join",
    "queue": "trainer",
    "train": "trainer",
    "commit": "trainer",
    "publish": "trainer",
}
"""Stage -> the process that measures it."""
Buckets = dict[float, float]
"""Upper bound in seconds -> cumulative count."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A version that the reader serves: since when (Unix seconds), and what it contains."""

    seconds: float
    offsets: Mapping[int, int]
    users: frozenset[str]


class Watch:
    """When each named conversion was sent, and when each version came."""

    def __init__(self) -> None:
        self.sent: dict[tuple[str, str], tuple[float, str]] = {}
        """(impression id, kind) -> (Unix seconds, user id)."""
        self.shown: list[Shown] = []
        self.reader: RepresentationReader | None = None

    def on_send(self, event: TrafficEvent) -> None:
        if event.stream == "conversions":
            line = orjson.loads(event.line)
            if line["impression_id"] is not None:
                conversion = line["impression_id"], line["kind"]
                self.sent[conversion] = time.time(), line["user_id"]

    def on_applied(self, changes: Sequence[Change], readable_seconds: float) -> None:
        manifest = self.reader.manifest if self.reader else None
        if manifest is not None:
            users = frozenset(change.id for change in changes if change.kind == "user")
            offsets = dict(manifest.source_offsets.get(SAMPLES, {}))
            self.shown.append(Shown(readable_seconds, offsets, users))


def measure(quick: bool) -> dict[str, Any]:
    """Every key of the report; see the module."""
    windows, seconds = (3, 7.0) if quick else (5, 20.0)
    source = SimulatedTraffic(rate=RATE, faults=False)
    config = config_of(source.config_values(), join__policy="correct", join__elapsed="0s")
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        with _stack(Path(folder), config) as run:
            watch = Watch()
            with RepresentationReader(
                config, run.bootstrap, ("user",), on_applied=watch.on_applied
            ) as reader:
                watch.reader = reader
                producer = EventProducer(config, run.bootstrap)
                replay = Replay(
                    source, producer, speedup=1.0, truth_path=None, on_send=watch.on_send
                )
                _warm_up(replay, reader, watch)
                peak = 0.0
                for events in BURST_QUICK if quick else BURST:
                    peak = _burst(replay, config, run, watch, events)
                say(f"peak load: {peak:.0f} events/s")
                replay.speedup = peak / 2 / _events_per_second(replay)
                before = _stage_buckets(run)
                sent_before = sum(replay.sent.values())
                say(f"{peak / 2:.0f} events/s for {windows * seconds:g} s")
                began = time.time()
                replay.release()
                while time.time() < began + windows * seconds:
                    replay.check()
                    time.sleep(0.1)
                replay.end()
                ended = time.time()
                sent = sum(replay.sent.values()) - sent_before
                _drain(config, run, watch)
                stages = _stages(before, _stage_buckets(run))
                fresh = page(run.children["reader"].metrics_port or 0, "/freshness") or {}
                brought = _brought(config, run.bootstrap)
        found = _latencies(watch, brought, since=began)
    return _report(found, began, windows, seconds) | {
        "rate_per_second": sent / (ended - began),
        "peak_per_second": peak,
        "stages": stages,
        "freshness_seconds": fresh,
        "policy": {"policy": config.join.policy, "elapsed": config.join.elapsed},
        "not_run": {},
    }


@contextlib.contextmanager
def _stack(folder: Path, config: Config) -> Iterator[RunState]:
    """`headwater up` in a process of its own, every child ready; stopped at the end."""
    write_config(config, folder / "bench.toml", comment="bench freshness")
    command = [sys.executable, "-P", "-m", "runtime.cli", "up", "--dir", str(folder / "stack")]
    with (folder / "up.log").open("w+b") as log:
        process = subprocess.Popen(
            [*command, "--config", str(folder / "bench.toml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            say("starting a stack")
            deadline = time.monotonic() + START_TIMEOUT_S
            while not (run := read_run(folder / "stack")) or not _is_up(run):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"no stack: {log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.2)
            yield run
        finally:
            process.terminate()
            process.wait(60)


def _is_up(run: RunState) -> bool:
    states = [child.state for child in run.children.values()]
    return bool(states) and all(state == "running" for state in states)


def _warm_up(replay: Replay, reader: RepresentationReader, watch: Watch) -> None:
    """First events, first batch, first version: paid once, and not what is measured."""
    replay.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    for events in WARM_UP:
        held = len(watch.shown)
        replay.allow(events)
        while not reader.count("user") or len(watch.shown) == held:
            replay.check()
            if time.monotonic() > deadline:
                raise RuntimeError("nothing was published")
            time.sleep(0.05)


def _burst(replay: Replay, config: Config, run: RunState, watch: Watch, events: int) -> float:
    """Events per second from the first of `events` sent to the version that contains them all."""
    deadline = time.monotonic() + START_TIMEOUT_S
    began, sent = time.time(), sum(replay.sent.values())
    replay.allow(events)
    ends: Mapping[tuple[str, int], int] = {}
    grown = time.monotonic()
    while time.monotonic() < grown + QUIET_SECONDS or sum(replay.sent.values()) < sent + events:
        now = end_offsets(config, run.bootstrap, [SAMPLES])
        if now != ends:
            ends, grown = now, time.monotonic()
        replay.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the burst of {events} events did not end")
        time.sleep(0.2)
    newest: Counter[int] = Counter()  # the log's ends lie behind transactions' markers
    for _, message in read_to_end(config, run.bootstrap, [SAMPLES]):
        partition, offset = _place(message)
        newest[partition] = max(newest[partition], offset)
    while time.monotonic() < deadline:
        for shown in watch.shown:
            if all(shown.offsets.get(p, 0) > offset for p, offset in newest.items()):
                return events / (shown.seconds - began)
        time.sleep(0.2)
    raise RuntimeError(f"no version contains the burst of {events} events")


def _events_per_second(replay: Replay) -> float:
    """Of both streams, at the speed of event time."""
    return RATE * sum(replay.sent.values()) / replay.sent["impressions"]


def _drain(config: Config, run: RunState, watch: Watch) -> None:
    """Wait until the version that contains the last sample is here, or the time is over."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    wanted: Counter[int] = Counter()
    for partition, offset in _brought(config, run.bootstrap).values():
        wanted[partition] = max(wanted[partition], offset)
    while time.monotonic() < deadline:
        newest = watch.shown[-1].offsets if watch.shown else {}
        if all(newest.get(p, 0) > offset for p, offset in wanted.items()):
            return
        time.sleep(0.2)


def _brought(config: Config, bootstrap: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(impression id, kind) -> where the first sample lies that knows of the conversion."""
    where: dict[tuple[str, str], tuple[int, int]] = {}
    for _, message in read_to_end(config, bootstrap, [SAMPLES]):
        line = orjson.loads(message.value() or b"{}")
        for kind, label in line["labels"].items():
            if label:
                where.setdefault((line["impression_id"], kind), _place(message))
    return where


def _place(message: Message) -> tuple[int, int]:
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None
    return partition, offset


@dataclass(slots=True)
class Latencies:
    """Of every named conversion sent while measuring."""

    at: list[float]
    """Unix seconds at which it was sent."""
    seconds: list[float]
    never_a_label: int = 0
    """Came after the window or never reached a sample."""
    not_published: int = 0


def _latencies(
    watch: Watch, brought: Mapping[tuple[str, str], tuple[int, int]], *, since: float
) -> Latencies:
    found = Latencies([], [])
    for conversion, (at, user) in watch.sent.items():
        if at < since:
            continue
        place = brought.get(conversion)
        if place is None:
            found.never_a_label += 1
            continue
        partition, offset = place
        version = next((s for s in watch.shown if s.offsets.get(partition, 0) > offset), None)
        if version is None or user not in version.users:
            found.not_published += 1
            continue
        found.at.append(at)
        found.seconds.append(version.seconds - at)
    return found


def _report(found: Latencies, began: float, windows: int, seconds: float) -> dict[str, Any]:
    ages, at = np.array(found.seconds), np.array(found.at) - began
    per_window = [ages[(at >= n * seconds) & (at < (n + 1) * seconds)] for n in range(windows)]
    return {
        "p50_seconds": float(np.percentile(ages, 50)),
        "p99_seconds": float(np.percentile(ages, 99)),
        "max_seconds": float(ages.max()),
        "conversions": len(ages),
        "conversions_never_a_label": found.never_a_label,
        "conversions_not_published": found.not_published,
        "rounds": {
            name: spread([float(np.percentile(part, q)) for part in per_window if len(part)])
            for name, q in (("p50_seconds", 50), ("p99_seconds", 99))
        },
    }


def _stage_buckets(run: RunState) -> dict[str, Buckets]:
    """Each stage's histogram as it stands now."""
    found: dict[str, Buckets] = {}
    for stage, child in STAGES.items():
        port = run.children[child].metrics_port
        scraped = scrape(port or 0)
        found[stage] = {
            float(labels["le"]): count
            for labels, count in scraped.find("headwater_stage_latency_seconds_bucket", stage=stage)
        }
    return found


def _stages(
    before: Mapping[str, Buckets], after: Mapping[str, Buckets]
) -> dict[str, dict[str, float | None]]:
    """Quantiles of what each stage saw in between, linear within a bucket."""
    found: dict[str, dict[str, float | None]] = {}
    for stage, buckets in after.items():
        counts = {le: n - before[stage].get(le, 0.0) for le, n in sorted(buckets.items())}
        found[stage] = {
            "p50": _quantile(counts, 0.5),
            "p99": _quantile(counts, 0.99),
            "count": max(counts.values(), default=0.0),
        }
    return found


def _quantile(cumulative: Buckets, q: float) -> float | None:
    """None without observations; the last finite bound for what lies beyond it."""
    total = max(cumulative.values(), default=0.0)
    low, below = 0.0, 0.0
    for high, count in sorted(cumulative.items()):
        if total and count >= q * total:
            if high == float("inf"):
                return low
            return low + (high - low) * (q * total - below) / max(count - below, 1e-9)
        low, below = high, count
    return None


if __name__ == "__main__":
    run_benchmark("freshness", measure)

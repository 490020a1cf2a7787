"""What the trainer's metrics cost: time inside metric calls over time of the run they are in.

Two runs with and without metrics differ by more than what is looked for, so the calls themselves
are timed: every change of a counter, gauge or histogram and everything in `trainer.metrics` (the
timer's own cost included), while the trainer learns from a file, with the commits of a live one.
Beside the loop: a scrape every 5 s and the lag monitor on a real broker, as shares of one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import config_of, run_benchmark, say, spread
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest
from train_log import config_values, sample_lines

from runtime.broker import EmbeddedBroker
from runtime.prometheus import SCRAPE_SECONDS
from topics.admin import ensure_topics
from topics.lag import LagMonitor
from topics.names import SAMPLES, trainer_group
from trainer import metrics
from trainer.bounded import run_bounded

LIMIT = 0.01
_LAG_INTERVAL_S = 2.0


class Stopwatch:
    """Time in the outermost of the calls that it was put around."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self._inside = False

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return call(*arguments, **named)
            self._inside = True
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1
                self._inside = False

        return timed

    def put_around_metrics(self) -> None:
        for kind, names in (
            (Counter, ("inc", "labels")),
            (Gauge, ("set", "inc", "labels")),
            (Histogram, ("observe", "labels")),
        ):
            for name in names:
                setattr(kind, name, self.around(getattr(kind, name)))
        for name in [name for name in vars(metrics) if name.startswith("observe_")]:
            setattr(metrics, name, self.around(getattr(metrics, name)))


def measure(quick: bool) -> dict[str, Any]:
    """Every key of the report; see the module."""
    torch.set_num_threads(1)
    samples, rounds = (20_000, 1) if quick else (100_000, 3)
    config = config_of(config_values(), kafka__partitions=2, trainer__commit_every="500ms")
    shares, calls = [], 0
    watch = Stopwatch()
    watch.put_around_metrics()
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as name:
        file = Path(name) / "samples.jsonl"
        with file.open("wb") as out:
            out.writelines(line + b"\n" for line in sample_lines(samples))
        for number in range(rounds):
            watch.seconds, watch.calls = 0.0, 0
            found = run_bounded(file, config, Path(name) / f"store{number}")
            shares.append(watch.seconds / found["seconds"])
            calls = watch.calls
            say(f"round {number + 1}: {100 * shares[-1]:.2f} % of {found['seconds']:.1f} s")
        scrape_s = _scrape_seconds()
        lag = _lag_share(Path(name) / "broker", 6.0 if quick else 20.0)
    whole = spread(shares)["median"] + scrape_s / SCRAPE_SECONDS + lag
    return {
        "overhead": whole,
        "limit": LIMIT,
        "within_limit": whole <= LIMIT,
        "calls_share": spread(shares),
        "calls_per_round": calls,
        "scrape_seconds": scrape_s,
        "scrape_share": scrape_s / SCRAPE_SECONDS,
        "lag_share": lag,
        "samples_per_round": samples,
    }


def _scrape_seconds() -> float:
    """Processor time of one scrape of what the run has filled, the best of 20: of its own work."""
    took = []
    for _ in range(20):
        began = time.thread_time()
        generate_latest(REGISTRY)
        took.append(time.thread_time() - began)
    return min(took)


def _lag_share(folder: Path, seconds: float) -> float:
    """Processor time of this process while only the lag monitor works in it, of one core."""
    with EmbeddedBroker(folder) as broker:
        config = config_of(config_values(), kafka__partitions=2)
        ensure_topics(config, broker.bootstrap)
        monitor = LagMonitor(
            config,
            broker.bootstrap,
            trainer_group(config),
            [SAMPLES],
            dict,
            interval_seconds=_LAG_INTERVAL_S,
        )
        time.sleep(2 * _LAG_INTERVAL_S)  # its client has connected
        began, clock = time.process_time(), time.monotonic()
        time.sleep(seconds)
        share = (time.process_time() - began) / (time.monotonic() - clock)
        monitor.close()
    return share


if __name__ == "__main__":
    run_benchmark("metrics", measure)

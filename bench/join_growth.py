"""The growth part of `bench/join.py`: what longer windows, more keys and more features cost.

Each system runs over an input of its own, once untimed where there is time, then timed; what is
reported is events per second relative to the same system over the base input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from runtime.sources.simulated import SimulatedTraffic
from runtime.sources.traffic import TrafficEvent

START_MS = 1_700_000_000_000
SPAN_HOURS = 26.0
"""Event time of the growth inputs: a window of 24 h fills and begins to close."""
_COMPLETED = re.compile(r"Completed checkpoint \d+ for job \w+ \((\d+) bytes")


@dataclass(frozen=True)
class Input:
    """One input: how many impressions, of how many pairs, with how many features."""

    name: str
    impressions: int
    keys: int = 1
    features: int = 0
    """0 = the simulator's own."""

    def events(self) -> Iterator[TrafficEvent]:
        source = SimulatedTraffic(
            start_ms=START_MS,
            rate=self.impressions / (SPAN_HOURS * 3600),
            users=2_000 * self.keys,
            items=500 * self.keys,
            impressions_max=self.impressions,
            faults=False,
        )
        if not self.features:
            yield from source.events()
            return
        features = {f"slot{n}": f"value{n * 7919}" for n in range(self.features)}
        for event in source.events():
            if event.stream != "impressions":
                yield event
                continue
            line = orjson.dumps(orjson.loads(event.line) | {"features": features})
            yield TrafficEvent(event.stream, event.due_ms, line)


def windows(hours: int) -> dict[str, Any]:
    """Config flags: both of the simulator's kinds get this window."""
    from runtime.sources.world import KINDS

    return {f"kinds__{kind}__window": f"{hours}h" for kind in KINDS}


def inputs(quick: bool) -> list[Input]:
    """Base, ten times the keys, and two of features."""
    many = 4_000 if quick else 200_000
    return [
        Input("base", many),
        Input("keys-10x", many, keys=10),
        Input("features-10", many // 20, features=10),
        Input("features-2000", many // 20, features=2_000),
    ]


def checkpoint_bytes_max(log: Path, since: int) -> int:
    """The largest completed checkpoint that a JVM's log tells of after its first `since` bytes."""
    with log.open("rb") as file:
        file.seek(since)
        found = [int(size) for size in _COMPLETED.findall(file.read().decode(errors="replace"))]
    return max(found, default=0)


def report(
    rate: Callable[[str, str, int], float], state_bytes: dict[str, int], pending: int
) -> dict[str, Any]:
    """`rate(system, input, window_hours)` in events/s; ratios of them."""
    growth = {}
    for system in ("heap", "rocksdb"):
        base = rate(system, "base", 1)
        growth[system] = {
            "window_24h_to_1h": rate(system, "base", 24) / base,
            "keys_10x_to_1x": rate(system, "keys-10x", 1) / base,
        }
    features = {
        f"ratio_heap_{n}_features": rate("heap", f"features-{n}", 1)
        / rate("copy", f"features-{n}", 1)
        for n in (10, 2_000)
    }
    return {
        "growth": growth,
        "features": features,
        "state_bytes_per_pending_impression": {
            system: size / pending for system, size in state_bytes.items()
        },
    }

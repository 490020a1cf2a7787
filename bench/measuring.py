"""What every benchmark shares: options, rounds with their spread, the machine, the printed result.

A benchmark prints one JSON object on stdout and its progress on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import psutil

from settings.config import Config
from settings.load import load_config

DIGITS = 4
"""Significant digits of a printed number: more would be noise."""


@dataclass(slots=True)
class Part:
    """What one part of a benchmark found: a benchmark merges its parts."""

    summary: dict[str, Any]
    """Top-level keys: one number each."""
    detail: dict[str, Any] = field(default_factory=dict)
    """Top-level keys that hold the measurements behind them, each with its spread."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Key or peer -> why it was not measured."""

    @property
    def all(self) -> dict[str, Any]:
        """One object: a key that another try has measured is not called not run."""
        left = {key: why for key, why in self.not_run.items() if key not in self.summary}
        return {**self.summary, **self.detail, "not_run": left}


def merged(parts: Sequence[Part]) -> Part:
    """One part of many."""
    whole = Part({})
    for part in parts:
        whole.summary |= part.summary
        whole.detail |= part.detail
        whole.not_run |= part.not_run
    return whole


def run_benchmark(
    name: str,
    measure: Callable[[bool], dict[str, Any]],
    parts: Mapping[str, Callable[[bool], Part]] | None = None,
) -> None:
    """Parse `[--quick] [--part PART]`, measure, print. SIGTERM is Ctrl-C, so that every child ends
    with us. Of a benchmark with `parts`, one may be run alone."""
    parser = argparse.ArgumentParser(prog=f"bench/{name}.py")
    parser.add_argument("--quick", action="store_true", help="same keys, under a minute")
    if parts:
        parser.add_argument("--part", choices=list(parts), help="this one alone")
    options = parser.parse_args()
    part = getattr(options, "part", None)
    signal.signal(signal.SIGTERM, _interrupt)
    before, started = os.getloadavg(), time.perf_counter()
    found = measure(options.quick) if not parts or part is None else parts[part](options.quick).all
    chosen = (f" --part {part}" if part else "") + (" --quick" if options.quick else "")
    result = {
        "name": name,
        **found,
        "quick": options.quick,
        "command": f"headwater bench {name} --json{chosen}",
        "seconds": time.perf_counter() - started,
        "machine": machine(before),
    }
    sys.stdout.write(json.dumps(rounded(result), indent=2) + "\n")


def machine(load_before: Sequence[float]) -> dict[str, Any]:
    """Cores that this process may use, memory, and how busy the machine was (1, 5, 15 min)."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "load": {"before": list(load_before), "after": list(os.getloadavg())},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median of the rounds and how far they lie apart."""
    return {
        "median": float(np.median(values)),
        "min": float(min(values)),
        "max": float(max(values)),
        "rounds": len(values),
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Of two systems measured round by round: the spread of the rounds' own ratios."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def say(text: str) -> None:
    """Progress, for a person who waits."""
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()


def config_of(values: Mapping[str, Any], **flags: Any) -> Config:
    """A source's `config_values` with `flags` over them; `__` stands for the dot of a name.

    The environment is left out: a benchmark measures what its command says.
    """
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    leaves = {
        f"{section}.{key}": value
        for section, content in values.items()
        if isinstance(content, Mapping)
        for key, value in content.items()
    }
    plain = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    return load_config(None, env={}, flags={**plain, **leaves, **dotted}).config


def rounded(value: Any) -> Any:
    """`value` with every float cut to DIGITS significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the cleaning-up off
    raise KeyboardInterrupt

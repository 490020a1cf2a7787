"""Sources by the name a person types."""

from __future__ import annotations

import difflib
from pathlib import Path

from runtime.sources.deskdrop import DeskdropTraffic
from runtime.sources.kuairand import KuairandTraffic
from runtime.sources.simulated import SimulatedTraffic
from runtime.sources.traffic import Source

SOURCES = ("simulated", "deskdrop", "kuairand")


DEMO_RATE = 120.0
"""Impressions per second of the simulator unless said otherwise: some 270 samples a second, which
leave two slow cores room for broker, join, trainer, reader and screen at once."""


class SourceError(ValueError):
    """No such source, or its file is missing or not what it should be. Nothing was started."""


def open_source(
    name: str, data: Path | None, *, rate: float | None = None, seed: int = 0
) -> Source:
    """The source `name`; `data` is the log of the real ones, `rate` impressions/s of the simulator.

    Raises SourceError.
    """
    if name == "simulated":
        if data is not None:
            raise SourceError("--data is for real logs; the simulated source reads no file")
        return SimulatedTraffic(seed=seed, rate=rate or DEMO_RATE)
    if name not in SOURCES:
        close = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SourceError(f"source {name!r}: expected one of {', '.join(SOURCES)}{hint}")
    if rate is not None:
        raise SourceError("--rate is for the simulated source; a real log has --speedup")
    if data is None:
        raise SourceError(f"source {name!r} needs its log: --data PATH")
    reader = DeskdropTraffic if name == "deskdrop" else KuairandTraffic
    try:
        return reader(data)
    except FileNotFoundError:
        raise SourceError(f"--data {data}: no such file") from None
    except Exception as error:
        raise SourceError(f"--data {data}: not readable as {name}: {error}") from error

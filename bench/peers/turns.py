"""A peer's side of the turns: one JSON object per line on stdin, one answer per line.

    {"do": "prepare", "keys": 10000000, "dim": 16, "ids": 106496, ...}  -> {"version": "1.9.0", ...}
    {"do": "steps", "first": 0, "steps": 20}                            -> {"ms": 35.2}

`ms` is milliseconds per step. A failure is {"error": "..."} and exit code 1; the end of stdin ends
the peer. Runs in the peer's own environment: standard library and numpy only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[int], None]
Prepare = Callable[[dict[str, Any]], tuple[Step, dict[str, Any]]]
"""Request -> (one step of a number, what to tell: version, mode, ...)."""


def serve(prepare: Prepare) -> None:
    """Answer until stdin ends."""
    # Libraries print as they load, so answers have a pipe of their own; by hand, stdout will do.
    answers = os.fdopen(int(os.environ.get("HEADWATER_ANSWERS", "1")), "w", buffering=1)
    step: Step | None = None
    try:
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "prepare":
                before = _resident_bytes()
                step, told = prepare(request)
                step(0)  # traces, compiles, allocates
                grown = _resident_bytes() - before
                answers.write(json.dumps({**told, "resident_bytes": grown}) + "\n")
            elif request["do"] == "steps" and step is not None:
                first, steps = int(request["first"]), int(request["steps"])
                began = time.perf_counter()
                for n in range(first, first + steps):
                    step(n)
                ms = 1000 * (time.perf_counter() - began) / steps
                answers.write(json.dumps({"ms": ms}) + "\n")
            else:
                raise ValueError(f"expected prepare, then steps: got {line.strip()}")
    except Exception as error:
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        raise


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")

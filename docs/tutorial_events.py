"""Writes i.jsonl and c.jsonl: ten minutes of simulated traffic that end now, for the tutorial."""

from __future__ import annotations

import sys
from pathlib import Path

from runtime.run_state import now_ms
from runtime.sources.simulated import SimulatedTraffic

source = SimulatedTraffic(start_ms=now_ms() - 600_000, rate=5, impressions_max=3_000, faults=False)
files = {"impressions": Path("i.jsonl"), "conversions": Path("c.jsonl")}
lines: dict[str, list[bytes]] = {name: [] for name in files}
for event in source.events():
    lines[event.stream].append(event.line + b"\n")
for name, file in files.items():
    file.write_bytes(b"".join(lines[name]))
    sys.stdout.write(f"{file}: {len(lines[name])} {name}\n")

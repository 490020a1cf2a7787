"""What the demo shows while it runs: a live screen on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from runtime.readout import Readout
from runtime.run_state import RunState
from runtime.screen import freshness_table, processes_table, stages_table, tasks_table
from runtime.spotlight import Sighting, describe

_LINE_EVERY_S = 5.0
_NOTICES_SHOWN = 3
_PAIRS_WIDTH = 110


class DemoView:
    """`notice` for what happened, `show` for how it goes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._notices: list[str] = []
        self._said_at = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*raised)

    def notice(self, text: str) -> None:
        """Something happened."""
        self._notices.append(f"{time.strftime('%H:%M:%S')} {text}")
        if self._live is None:
            self._console.print(self._notices[-1], highlight=False, soft_wrap=True)

    def show(
        self,
        phase: str,
        run: RunState,
        *,
        out: Readout,
        per_second: Mapping[str, float],
        produced: float,
        sighting: Sighting | None,
    ) -> None:
        """How it goes now."""
        if self._live is not None:
            self._live.update(
                self._screen(
                    phase, run, out=out, per_second=per_second, produced=produced, sighting=sighting
                )
            )
        elif time.monotonic() - self._said_at >= _LINE_EVERY_S:
            self._said_at = time.monotonic()
            self._console.print(
                _line(phase, out, per_second, produced), highlight=False, soft_wrap=True
            )
            for text in describe(sighting) if sighting else ():
                self._console.print(text, highlight=False, soft_wrap=True)

    def show_start(self, phase: str, run: RunState) -> None:
        """While the processes start."""
        if self._live is not None:
            self._live.update(Group(Text(phase, style="bold"), processes_table(run)))

    def _screen(
        self,
        phase: str,
        run: RunState,
        *,
        out: Readout,
        per_second: Mapping[str, float],
        produced: float,
        sighting: Sighting | None,
    ) -> Group:
        version = "none yet" if out.version is None else str(out.version)
        spot = describe(sighting) if sighting else ["waiting for a conversion"]
        panels = [
            _panel("processes", processes_table(run, reasons=False)),
            _panel("events", stages_table(out, dict(per_second), produced=produced)),
            _panel("freshness at a reader", freshness_table(out)),
            _panel("predicted before learnt", tasks_table(out)),
        ]
        return Group(
            Text(f"{phase}; newest version: {version}", style="bold"),
            *(_pairs(panels) if self._console.width >= _PAIRS_WIDTH else panels),
            _panel("one user", Text("\n".join(spot))),
            *(Text(notice, style="yellow") for notice in self._notices[-_NOTICES_SHOWN:]),
        )


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left")


def _pairs(panels: list[Panel]) -> list[Table]:
    """Two panels a row, so that the screen fits 24 lines."""
    rows = []
    for left, right in zip(panels[::2], panels[1::2], strict=True):
        grid = Table.grid(expand=True)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(left, right)
        rows.append(grid)
    return rows


def _line(phase: str, out: Readout, per_second: Mapping[str, float], produced: float) -> str:
    rates = ", ".join(f"{stage} {rate:,.0f}/s" for stage, rate in per_second.items())
    fresh = ", ".join(
        f"{kind} p50 {found['p50']:.2f} s p99 {found['p99']:.2f} s"
        for kind, found in out.freshness_seconds.items()
    )
    tasks = ", ".join(
        f"{task} AUC now {found['auc']:.3f} NE {found['ne'] or 0:.3f} PCOC {found['pcoc'] or 0:.2f}"
        for task, found in out.progressive_latest.items()
        if found.get("auc") is not None
    )
    lag = sum(out.lag_records.values())
    return (
        f"{phase}: produced {produced:,.0f}/s, {rates}; lag {lag:,} records; "
        f"version {out.version or 'none yet'}; fresh: {fresh or 'none yet'}; "
        f"{tasks or 'no impression is final yet'}"
    )

"""Tables for a person: what `status` and the demo show."""

from __future__ import annotations

from rich.table import Table

from runtime.readout import Readout
from runtime.run_state import RunState

_MISSING = "-"


def processes_table(run: RunState, *, reasons: bool = True) -> Table:
    table = Table("process", "state", "pid", "restarts", box=None)
    if reasons:
        table.add_column("why it ended last")
    for name, child in run.children.items():
        style = {"running": "green", "starting": "yellow", "backoff": "red"}.get(child.state, "dim")
        table.add_row(
            name,
            f"[{style}]{child.state}[/]",
            str(child.pid or _MISSING),
            str(child.restarts),
            *([child.reason[:100]] if reasons else []),
        )
    return table


def stages_table(
    out: Readout, per_second: dict[str, float], *, produced: float | None = None
) -> Table:
    """Events/s and lag of each stage, freshness of each kind of representation."""
    table = Table("stage", "per second", "lag, records", "lag, s", box=None)
    if produced is not None:
        table.add_row("produced", f"{produced:,.0f}", _MISSING, _MISSING)
    for stage, suffix in (("joined", "join"), ("learned", "trainer"), ("published", "reader")):
        group = next((name for name in out.lag_records if name.endswith(f".{suffix}")), "")
        lag = out.lag_records.get(group)
        table.add_row(
            stage,
            f"{per_second.get(stage, 0):,.0f}",
            _MISSING if lag is None else f"{lag:,}",
            _MISSING if lag is None else f"{out.lag_seconds.get(group, 0):.1f}",
        )
    return table


def freshness_table(out: Readout) -> Table:
    table = Table("fresh vectors", "p50, s", "p99, s", "seen", box=None)
    for kind, found in out.freshness_seconds.items():
        table.add_row(
            kind, f"{found['p50']:.2f}", f"{found['p99']:.2f}", f"{found.get('count', 0):,.0f}"
        )
    if not out.freshness_seconds:
        table.add_row("none yet", _MISSING, _MISSING, _MISSING)
    return table


def tasks_table(out: Readout) -> Table:
    """Progressive metrics, each impression predicted before it is learnt from: since the start,
    and over the newest two evaluation windows."""
    table = Table("task", "AUC, now", "NE, now", "PCOC, now", "scored", "positive", box=None)
    for task, found in out.progressive.items():
        latest = out.progressive_latest.get(task, {})
        table.add_row(
            task,
            *(
                f"{_digits(found.get(metric))} {_digits(latest.get(metric))}"
                for metric in ("auc", "ne", "pcoc")
            ),
            *(f"{found.get(metric) or 0:,.0f}" for metric in ("samples", "positives")),
        )
    if not out.progressive:
        table.add_row("none yet", *[_MISSING] * 5)
    return table


def _digits(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2f}"

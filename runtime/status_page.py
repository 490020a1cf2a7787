"""The overview as one HTML page without scripts, fonts or any other file: for `status --html`.

Shown: processes, what each stage does and how far it is behind over the last minutes, freshness,
where events ended, how good the model is. Everything that came from outside is escaped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from html import escape

from runtime.readout import Readout, rates
from runtime.run_state import RunState

_GROUPS = (("joined", "join"), ("learned", "trainer"), ("published", "reader"))
_TEXT = ("state", "verdict", "why it ended last")
"""Columns that are read as words, not compared as numbers."""
_WIDTH, _HEIGHT = 260, 44
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --good: #17803d; --bad: #c02a2a;
  --ink: #2563a8; }
@media (prefers-color-scheme: dark) { :root { --good: #4cc27a; --bad: #ff7b72; --ink: #79b8ff; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 1.5rem auto;
  padding: 0 1rem }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem }
.quiet { color: var(--quiet) } .good { color: var(--good) } .bad { color: var(--bad) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: .8rem;
  margin: 1rem 0 }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem }
.tile b { font-size: 1.5rem; font-variant-numeric: tabular-nums; font-weight: 600 }
.tile svg { display: block; width: 100%; height: 2.9rem; margin-top: .4rem }
polyline { fill: none; stroke: var(--ink); stroke-width: 1.6; vector-effect: non-scaling-stroke }
.wide { overflow-x: auto } table { border-collapse: collapse; min-width: 30rem }
th, td { text-align: right; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums } th { font-weight: 500; color: var(--quiet) }
th:first-child, td:first-child, td.text, th.text { text-align: left }
"""


def page(run: RunState, history: Sequence[Readout], *, refresh_seconds: int | None = None) -> str:
    """HTML of the stack `run`. `history`: at least two readouts, oldest first; the last is now."""
    now = history[-1]
    version = "no version yet" if now.version is None else f"version {now.version}"
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds}">' if refresh_seconds else ""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"{refresh}<title>headwater: {escape(version)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(version)}</h1>",
        f'<div class="quiet">stack {escape(run.run_id)}, Kafka at {escape(run.bootstrap)}, '
        f"topics {escape(run.topic_prefix)}.*</div>",
        '<div class="tiles">',
        *_tiles(history),
        "</div>",
        *_table(
            "Processes", ("process", "state", "pid", "restarts", "why it ended last"), _of(run)
        ),
        *_table("Fresh vectors", ("kind", "p50", "p99", "seen"), _freshness(now)),
        *_table(
            "Model, over the newest windows",
            ("task", "AUC", "NE", "PCOC", "scored", "positive"),
            _tasks(now),
        ),
        *_table("Where events ended", ("stream", "verdict", "events"), _events(now)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _tiles(history: Sequence[Readout]) -> Iterator[str]:
    pairs = list(itertools.pairwise(history))
    for stage, suffix in _GROUPS:
        series = [rates(before, after)[stage] for before, after in pairs]
        yield _tile(f"{stage} per second", f"{series[-1]:,.0f}", _lag(history[-1], suffix), series)
    p50s = [of["p50"] for of in (r.freshness_seconds.get("user") for r in history) if of]
    if p50s:
        said = f"p99 {history[-1].freshness_seconds['user']['p99']:.2f} s"
        yield _tile("fresh user vectors, median", f"{p50s[-1]:.2f} s", said, p50s)
    lags = [r.watermark_lag_seconds for r in history if r.watermark_lag_seconds is not None]
    if lags:
        yield _tile("watermark behind the clock", f"{lags[-1]:.1f} s", "event time decided", lags)


def _tile(name: str, value: str, said: str, series: Sequence[float]) -> str:
    return (
        f'<div class="tile"><div class="quiet">{escape(name)}</div><b>{escape(value)}</b> '
        f'<span class="quiet">{escape(said)}</span>{_line(name, series)}</div>'
    )


def _line(name: str, series: Sequence[float]) -> str:
    """A line from 0 to the greatest value, the newest at the right."""
    top = max(*series, 1e-9) if len(series) > 1 else 1e-9
    step = _WIDTH / max(1, len(series) - 1)
    points = " ".join(
        f"{n * step:.1f},{_HEIGHT - 2 - (_HEIGHT - 4) * value / top:.1f}"
        for n, value in enumerate(series)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(name)} over time"><polyline points="{points}"/></svg>'
    )


def _lag(now: Readout, suffix: str) -> str:
    group = next((name for name in now.lag_records if name.endswith(f".{suffix}")), None)
    if group is None:
        return "lag unknown"
    return f"lag {now.lag_records[group]:,} records, {now.lag_seconds.get(group, 0):.1f} s"


def _table(
    title: str, heads: Sequence[str], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]
) -> Iterator[str]:
    """Cells are HTML already."""
    found = list(rows)
    yield f"<h2>{escape(title)}</h2>"
    if not found:
        yield '<div class="quiet">none yet</div>'
        return
    yield '<div class="wide"><table><tr>'
    kinds = [' class="text"' if head in _TEXT else "" for head in heads]
    yield "".join(f"<th{k}>{escape(h)}</th>" for k, h in zip(kinds, heads, strict=True)) + "</tr>"
    for row in found:
        cells = zip(kinds, row, strict=True)
        yield "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in cells) + "</tr>"
    yield "</table></div>"


def _of(run: RunState) -> Iterator[tuple[str, ...]]:
    for name, child in run.children.items():
        tone = "good" if child.state == "running" else "bad"
        state = f'<span class="{tone}">{escape(child.state)}</span>'
        yield escape(name), state, str(child.pid or "-"), str(child.restarts), escape(child.reason)


def _freshness(now: Readout) -> Iterator[tuple[str, ...]]:
    for kind, found in now.freshness_seconds.items():
        p50, p99 = f"{found['p50']:.2f} s", f"{found['p99']:.2f} s"
        yield escape(kind), p50, p99, f"{found.get('count', 0):,.0f}"


def _tasks(now: Readout) -> Iterator[tuple[str, ...]]:
    for task, whole in now.progressive.items():
        latest = now.progressive_latest.get(task, {})
        quality = [latest.get(metric) for metric in ("auc", "ne", "pcoc")]
        counts = [whole.get(metric) or 0 for metric in ("samples", "positives")]
        yield (
            escape(task),
            *("-" if value is None else f"{value:.3f}" for value in quality),
            *(f"{value:,.0f}" for value in counts),
        )


def _events(now: Readout) -> Iterator[tuple[str, ...]]:
    for stream, verdicts in now.events.items():
        for verdict, count in verdicts.items():
            yield escape(stream), escape(verdict), f"{count:,}"

"""What every study shares: options, seeds, one arm's run over a log, the table and the plot."""

from __future__ import annotations

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as the trainer sets it, before torch loads

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import pyplot as plt
from measuring import machine, rounded, say
from study_log import Log

from embedding_store.store import EmbeddingStore
from settings.config import Config, TrainerConfig
from trainer.batch import Batch
from trainer.evaluation import Sums
from trainer.feed import make_portion
from trainer.loop import Loop
from trainer.portion import Portion
from trainer.slots import Plan
from trainer.source import SourceRecord, _decode
from trainer.step import StepResult, row_layout

F64 = npt.NDArray[np.float64]
Predictions = dict[str, npt.NDArray[np.float32]]
"""Impression -> logits [T], as served at first sight."""


@dataclass(frozen=True, slots=True)
class Options:
    """Of the command line."""

    seeds: int
    quick: bool
    data: Path | None
    out: Path
    models: tuple[str, ...] = ()
    """Of the studies of logs: run these alone; none = all."""
    resume: bool = False
    """Take what `study_seeds` kept (the studies that keep it)."""


def run_study(
    name: str, study: Callable[[Options], dict[str, Any]], verb: str | None = None
) -> None:
    """Parse, run, write `NAME.md` and `NAME.json` beside the study's plot; print the JSON. `verb`:
    how it is called, if not by `headwater study NAME`."""
    parser = argparse.ArgumentParser(prog=f"bench/study_{name}.py")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", default="")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    before = os.getloadavg()
    models = tuple(filter(None, given.models.split(",")))
    result = study(Options(given.seeds, given.quick, given.data, given.out, models, given.resume))
    command = f"{verb or f'headwater study {name}'} --seeds {given.seeds}"
    command += " --quick" if given.quick else ""
    command += " --data PATH" if given.data is not None else ""
    command += f" --models {given.models}" if models else ""
    command += " --resume" if given.resume else ""
    result = rounded(
        {
            "name": name,
            "command": command,
            "quick": given.quick,
            **result,
            "machine": machine(before),
        }
    )
    (given.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    (given.out / f"{name}.md").write_text(_page(name, result), "utf-8")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


class Portions:
    """A log's portions, as a `trainer.feed.PortionSource`.

    They are decoded and hashed once, and every arm reads the same arrays, which nothing changes:
    an arm whose slots are those of the one before pays for its learning alone.
    """

    def __init__(self, log: Log, plan: Plan, trainer: TrainerConfig) -> None:
        size = trainer.batch_samples_max
        if log.portions is None or log.portions[:2] != (plan, size):
            starts = range(0, len(log.lines), size)
            log.portions = (plan, size, [_portion(log, at, size, plan) for at in starts])
        self._left = list(reversed(log.portions[2]))

    @property
    def at_end(self) -> bool:
        return not self._left

    def take(self, _stopping: Callable[[], bool]) -> Portion | None:
        return self._left.pop() if self._left else None

    def take_ready(self, _stopping: Callable[[], bool]) -> None:
        """None, as `Feed` says: what is prefetched when would depend on the clock."""

    def committed(self, offsets: Mapping[str, Mapping[int, int]]) -> None:
        """Nothing to tell."""

    def close(self) -> None:
        """Nothing is held."""


def _portion(log: Log, start: int, size: int, plan: Plan) -> Portion:
    records = [
        SourceRecord(*_decode(line)[:1], "log", 0, start + n)
        for n, line in enumerate(log.lines[start : start + size])
    ]
    return make_portion(records, plan)


def run_trainer(
    log: Log,
    config: Config,
    *,
    watch: Callable[[Loop], None] = lambda _loop: None,
    look: Callable[[Loop, EmbeddingStore], None] = lambda _loop, _store: None,
) -> Predictions:
    """The stream's own loop over the log; every impression's prediction at first sight.

    `watch` is called before the first sample, `look` after the last, while the store is open.
    """
    predictions: Predictions = {}
    with (
        tempfile.TemporaryDirectory(prefix="headwater-study-") as folder,
        EmbeddingStore.open(
            Path(folder) / "store",
            row_layout(config),
            cache_rows_max=config.store.cache_rows_max,
            owner="study",
        ) as store,
    ):
        loop = Loop(config, store, sink=None)
        watch(loop)
        step = loop.learner.step

        def note(batch: Batch, **how: Any) -> StepResult:
            result = step(batch, **how)
            for id_, row in zip(batch.impressions, result.logits, strict=True):
                predictions.setdefault(id_.decode(), row)
            return result

        loop.learner.step = note  # type: ignore[method-assign]
        loop.run(Portions(log, loop.plan, config.trainer))
        look(loop, store)
        return predictions


def regret(logits: F64, truth: F64) -> float:
    """Mean of KL(true rate || predicted) [N], in nats: expected logloss less the best possible."""
    p = np.clip(truth, 1e-9, 1 - 1e-9)
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return float((np.logaddexp(0.0, logits) - p * logits - entropy).mean())


def scores(logits: F64, labels: npt.NDArray[np.bool_]) -> dict[str, float]:
    """auc, ne, pcoc of one task."""
    sums = Sums()
    sums.add(logits, labels)
    report = sums.report()
    return {name: float(report[name] or np.nan) for name in ("auc", "ne", "pcoc")}


def mean_sd(values: Sequence[float]) -> dict[str, float]:
    """Over seeds; SD of the sample, 0 for one."""
    found = np.asarray(values, np.float64)
    return {
        "mean": float(found.mean()),
        "sd": float(found.std(ddof=1)) if len(found) > 1 else 0.0,
        "seeds": len(found),
    }


def bars(
    path: Path,
    values: Mapping[str, Mapping[str, float]],
    label: str,
    marks: Mapping[str, float] | None = None,
) -> None:
    """A bar per arm with its SD, and a named line at each of `marks`."""
    figure, axis = plt.subplots(figsize=(1.5 + 1.1 * len(values), 3.6))
    names = list(values)
    means = [values[name]["mean"] for name in names]
    axis.bar(names, means, yerr=[values[n]["sd"] for n in names], color="#3b6ea5", capsize=4)
    low, high = min(means), max(means)
    if low > 0 and low > 0.7 * high:
        axis.set_ylim(low - 0.5 * (high - low) - 0.002, high + 0.3 * (high - low) + 0.002)
    for n, (name, at) in enumerate((marks or {}).items()):
        axis.axhline(at, color=("#a53b3b", "#2f7d4f")[n % 2], lw=1.2, ls="--", label=name)
    if marks:
        axis.axhline(0, color="0.3", lw=0.8)
        axis.legend(fontsize=8)
    axis.set_ylabel(label)
    axis.tick_params(axis="x", rotation=40 if len(names) > 4 else 0)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def lines(
    axis: Any, rows: Mapping[str, Mapping[str, Mapping[str, float]]], *, joined: bool = True
) -> None:
    """A line per row over its columns, with SDs; side by side, so that no bar hides another.
    Columns that have no order are better not `joined`."""
    for n, (label, row) in enumerate(rows.items()):
        at = np.arange(len(row)) + (n - (len(rows) - 1) / 2) * 0.4 / max(1, len(rows))
        means, sds = [c["mean"] for c in row.values()], [c["sd"] for c in row.values()]
        style = {"marker": "os^Dvx*"[n % 7], "ls": "-" if joined else ""}
        axis.errorbar(at, means, sds, label=label, capsize=2, lw=1.2, ms=4, **style)
    columns = list(next(iter(rows.values())))
    axis.set_xticks(range(len(columns)), columns)
    axis.grid(axis="y", lw=0.4, alpha=0.6)
    axis.legend(fontsize=8)


def _page(name: str, result: Mapping[str, Any]) -> str:
    lines = [f"# Study: {name}", "", result["about"], "", f"`{result['command']}`", ""]
    if result["quick"]:
        lines += ["A quick run: it proves that the study runs, and decides nothing.", ""]
    for title, table in result["tables"].items():
        columns = list(next(iter(table.values())))
        lines += [f"## {title}", "", "| arm | " + " | ".join(columns) + " |"]
        lines += ["|---" * (1 + len(columns)) + "|"]
        for arm, row in table.items():
            lines.append(f"| {arm} | " + " | ".join(map(_cell, row.values())) + " |")
        lines.append("")
    lines += [f"- {text}" for text in result["verdicts"]]
    lines += ["", f"![{name}]({name}.png)", ""]
    return "\n".join(lines)


def _cell(found: Mapping[str, float] | str | int) -> str:
    """Mean ± SD; of one run there is no SD."""
    if not isinstance(found, Mapping):
        return str(found)
    return f"{found['mean']:.4g}" + (f" ± {found['sd']:.2g}" if found["seeds"] > 1 else "")


__all__ = [
    "F64", "Options", "Predictions", "bars", "lines", "mean_sd", "regret", "run_study",
    "run_trainer", "say", "scores",
]  # fmt: skip

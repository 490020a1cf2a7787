"""The studies over real logs: every model, a LightGBM retrained daily, and river, on one stream.

Every arm predicts an impression when it is shown and knows of labels only what had happened by
then: ours under policy `correct`, river by learning each final when it is emitted, LightGBM by
training at midnight on impressions whose windows had closed, with running rates per user, item and
value that count matured labels alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import orjson
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from measuring import config_of
from study_claims import better, verdict
from study_frame import Options, Predictions, mean_sd, run_trainer, say, scores
from study_log import Log, joined
from study_peers import TREES, Row, lightgbm_daily, river_online
from study_seeds import Kept

from runtime.sources.catalog import open_source
from trainer.models.catalogue import MODELS

PEERS = {"lightgbm": 31, "lightgbm, 7 leaves": 7}
"""Arm -> leaves of a tree. The small trees overfit rare tasks less; each task's verdict is against
the better of the two."""
RIVER = "river"
RUNS_MAX = {
    "kuairand": {"lightgbm": 1, "lightgbm, 7 leaves": 3, RIVER: 1},
    "deskdrop": {**dict.fromkeys(PEERS, 1), RIVER: 1},
}
"""River draws nothing; of a LightGBM a run costs as much as eight models (kuairand) or twenty (the
1,400 trainings of deskdrop's year)."""
QUICK_MODELS = ("lr", "dcn")
LOSSES = {"kuairand": "vanilla"}
"""That log has no conversion times: the early sample has every label, and nothing is delayed."""
NOTES = {
    "kuairand": "The log has no conversion times, so a label is known when its impression is: ours "
    "learn from it at once (running rates when it is final), LightGBM, as the daily peer "
    "it stands for, at the midnight after its window of 24 h has closed. Its rows are an extract "
    "(like or hate given), no random sample of exposures. The loss was chosen because nothing is "
    "delayed, but after fnw had been seen, which this log needs not: dcn's click AUC with it is "
    ".798 (seed 100).",
    "deskdrop": "An opened article is the impression; likes, bookmarks, follows and comments come "
    "at their own times and count within 24 h. Labels are delayed here, so the loss is fnw and "
    "ours learn of a conversion when it happens (running rates when an impression is final); "
    "LightGBM and river learn of an impression when its window has closed. LightGBM is not given "
    "the list of recent articles. Settings are those of study kuairand but the loss; nothing "
    "was chosen on this log for this table. dcn, river and the LightGBM of 31 leaves had been run "
    "on it once before; that one overfits, so one of 7 leaves was set beside it, in both logs.",
}
WITHOUT = "dcn"
"""The model that is also run without running rates."""
PLAIN = f"{WITHOUT}, no rates"
_OURS, _LIGHTGBM, _RIVER = "#3b6ea5", "#a53b3b", "#2f7d4f"
Found = dict[str, dict[str, float]]
"""Task -> auc, ne, pcoc of one run."""


def compare(name: str, options: Options) -> dict[str, Any]:
    """Progressive AUC and NE per task and arm over impressions after the first tenth.

    Measured are `options.models`; with `options.resume` a row has every run that is kept, of other
    models too.
    """
    if options.data is None:
        raise SystemExit(f"study {name}: --data PATH is needed, the log is not in the repository")
    source = open_source(name, options.data)
    values = source.config_values()
    models = options.models or (QUICK_MODELS if options.quick else tuple(MODELS))
    base = _config(name, values, "lr", 0)
    log = joined(source, base, 6_000 if options.quick else 10**9)
    labels, order = _outcomes(log)
    say(f"{len(order):,} impressions, {len(log.lines):,} samples")

    def ours(model: str, seed: int, **flags: Any) -> Predictions:
        return run_trainer(log, _config(name, values, model, seed, **flags))

    arms: dict[str, Callable[[int], Predictions]] = {
        **{p: partial(lightgbm_daily, log, base.tasks, leaves) for p, leaves in PEERS.items()},
        RIVER: partial(river_online, log, base.tasks),
        **{model: partial(ours, model) for model in models},
    }
    if WITHOUT in models:
        arms[PLAIN] = partial(ours, WITHOUT, technique__running_rates=False)
    kept = Kept(options, name, _digest(log))

    def measure(arm: str, seed: int) -> Found:
        found = _scored(arms[arm](seed), labels, order[len(order) // 10 :], base.tasks)
        said = ", ".join(f"{task} {row['auc']:.4f}" for task, row in found.items())
        say(f"seed {seed}, {arm}: {said}")
        return found

    for peers in (False, True):  # last, as they cost most: a run that is cut has ours
        for seed in range(options.seeds):
            for arm in arms:
                if (arm in (*PEERS, RIVER)) is peers and seed < RUNS_MAX[name].get(arm, seed + 1):
                    kept.take(partial(measure, arm, seed), seed, arm)
    runs = {arm: kept.runs(arm) for arm in (*PEERS, RIVER, *MODELS, PLAIN)}
    shown = {
        task: {
            arm: {key: mean_sd([run[task][key] for run in found]) for key in found[0][task]}
            | {"seeds": len(found)}
            for arm, found in runs.items()
            if found
        }
        for task in base.tasks
    }
    _plot(shown, options.out / f"{name}.png")
    return {
        "about": f"{len(order):,} impressions of {name}, in event time, each predicted when shown; "
        "metrics over all but the first tenth. Ours with `technique.running_rates`, policy "
        f"correct, loss {base.model.delayed_feedback}; a seed draws the weights. LightGBM, "
        "retrained at each midnight on all matured impressions with the same running rates, has "
        f"{TREES} trees of {' or '.join(map(str, PEERS.values()))} leaves at rate .1, so that it "
        "is cheap, and no early stopping; a seed draws the rows and columns that a tree sees. A "
        "task's verdict is against the one of larger AUC, without an SD where that ran once; river "
        "draws nothing. SD is over seeds: the log is one, and its own noise is in no figure. The "
        "best model of a task is named by the figures that it is shown with. "
        f"{NOTES[name]}",
        "tables": {f"Task {task}": rows for task, rows in shown.items()},
        "verdicts": [
            verdict(task, rows, tuple(MODELS), tuple(PEERS)) for task, rows in shown.items()
        ],
    }


def _outcomes(log: Log) -> tuple[dict[str, Row], list[str]]:
    """Impression -> its final labels; impressions in the order shown. The samples themselves are
    not held: Python's collector would walk through millions of objects in every arm."""
    labels, order = {}, []
    for line in log.lines:
        sample = orjson.loads(line)
        if sample["state"] == "final":
            labels[sample["impression_id"]] = sample["labels"]
        elif sample["state"] == "early":
            order.append(sample["impression_id"])
    return labels, order


def _digest(log: Log) -> str:
    """Of what the arms read."""
    whole = hashlib.sha256()
    for line in log.lines:
        whole.update(line)
    return whole.hexdigest()[:16]


def _scored(
    said: Predictions, labels: dict[str, Row], counted: list[str], tasks: tuple[str, ...]
) -> Found:
    found = {}
    for t, task in enumerate(tasks):
        y = np.asarray([labels[i][task] for i in counted], bool)
        found[task] = scores(np.asarray([said[i][t] for i in counted], np.float64), y)
    return found


def _config(name: str, values: Any, model: str, seed: int, **flags: Any) -> Any:
    return config_of(
        values,
        **{
            "join__policy": "correct",
            "model__delayed_feedback": LOSSES.get(name, "fnw"),
            "model__name": model,
            "technique__running_rates": True,
            "trainer__cut_by": "count",
            "trainer__batch_samples_max": 64,  # the logs are short: some thousand dense steps
            "trainer__commit_every_steps": 400,
            "trainer__evaluation_window": "24h",  # read by nobody here; a year has 8,760 hours
            "optimizer__dense_lr": 0.003,
            "trainer__seed": seed,
        }
        | flags,
    )


def _plot(shown: dict[str, Any], path: Path) -> None:
    """A panel per task, an arm per line, in order of AUC; hollow where an arm ran once."""
    columns = 3 if len(shown) % 3 == 0 else min(2, len(shown))
    rows = -(-len(shown) // columns)
    arms = len(next(iter(shown.values())))
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.8 * columns, (0.2 * arms + 1) * rows + 0.4), squeeze=False
    )
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (task, found) in zip(axes.flat, shown.items(), strict=False):
        order = sorted(found, key=lambda arm: found[arm]["auc"]["mean"])
        line = axis.axvline(found[better(found, PEERS)]["auc"]["mean"], color=_LIGHTGBM, lw=0.8)
        for at, arm in enumerate(order):
            auc, runs = found[arm]["auc"], found[arm]["seeds"]
            colour = _RIVER if arm == RIVER else _LIGHTGBM if arm in PEERS else _OURS
            error = auc["sd"] if runs > 1 else None
            inside = colour if runs > 1 else "white"
            style = {"fmt": "o", "ms": 4.5, "mfc": inside, "ecolor": "0.35", "capsize": 2.5}
            axis.errorbar(auc["mean"], at, xerr=error, color=colour, **style)
        axis.set_yticks(range(len(order)), order, fontsize=8)
        axis.grid(axis="x", lw=0.4, alpha=0.6)
        axis.set_axisbelow(True)
        axis.set(title=task, xlabel="AUC")
    names = {"ours": _OURS, "LightGBM": _LIGHTGBM, "river": _RIVER}
    handles = [Line2D([], [], color=c, marker="o", ls="", label=n) for n, c in names.items()]
    hollow = Line2D([], [], color="0.35", marker="o", mfc="white", ls="", label="one run, no SD")
    line.set_label("the better LightGBM")
    bar = Line2D([], [], color="0.35", marker="|", label="± SD over seeds")
    every = [*handles, bar, hollow, line]
    figure.legend(handles=every, loc="lower center", ncols=6 if columns > 2 else 3, fontsize=9)
    figure.tight_layout(rect=(0, 0.035 if columns > 2 else 0.05, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


__all__ = ["compare"]

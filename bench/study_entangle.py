"""Study `entangle`: do tasks that disagree cost each other less where each has rows of its own?

Users' tastes for two kinds agree only in part here. Users are told apart by what they gave so far:
r = (1 + clicks) / (1 + likes) of the stream's past. Per bucket of r: AUC of the multi-task model
less that of a model that learns the one task alone. Entanglement: 1 - Spearman of the distances of
user and item rows in the multi-task model's view of a task and in the single-task model's.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import numpy.typing as npt
import orjson
from matplotlib import pyplot as plt
from study_frame import F64, Options, mean_sd, run_study, say, scores
from study_world import Setting, make_setting, table_of

from embedding_store.store import EmbeddingStore
from trainer.analysis.measures import distances, entanglement
from trainer.loop import Loop
from trainer.parts.sets import SHARED

TASKS = ("click", "like")
MODELS = ("mmoe", "ple", "stem")
BUCKETS = ("low third", "middle", "high third")
"""Of r."""
AGREEMENT = 0.3
"""Correlation of a user's (and an item's) factors between kinds."""
USERS, ITEMS, PAIRS = 60, 60, 20_000
OPTIONS: dict[str, Any] = {"expert_dims": (64, 32), "tower_dims": (32,)}


def study(options: Options) -> dict[str, Any]:
    """Gain over the single-task model per model, task and bucket."""
    impressions = 3_000 if options.quick else 20_000
    gains: dict[str, dict[str, list[float]]] = {m: {} for m in MODELS}
    for seed in range(options.seeds):
        setting = make_setting(
            seed, impressions, users=USERS, items=ITEMS, rate=200.0, agreement=AGREEMENT
        )
        labels, bucket = _feedback(setting)
        alone, views_alone = {}, {}
        for task in TASKS:
            logits, views = _run(setting, "shared_bottom", (task,))
            alone[task], views_alone[task] = logits[:, 0], views[task]
        for model in MODELS:
            logits, views = _run(setting, model, TASKS)
            row: dict[str, float] = {}
            for t, task in enumerate(TASKS):
                for b, name in enumerate(BUCKETS):
                    here, y = bucket == b, labels[:, t]
                    gain = scores(logits[here, t], y[here])["auc"]
                    row[f"{task}, {name}"] = gain - scores(alone[task][here], y[here])["auc"]
                row[f"{task}, all"] = (
                    scores(logits[:, t], labels[:, t])["auc"]
                    - scores(alone[task], labels[:, t])["auc"]
                )
                row[f"entanglement {task}"] = entanglement(views[task], views_alone[task])
            for column, value in row.items():
                gains[model].setdefault(column, []).append(value)
            say(f"seed {seed}: {model} " + ", ".join(f"{k} {v:+.4f}" for k, v in row.items()))
    table = {model: {k: mean_sd(v) for k, v in row.items()} for model, row in gains.items()}
    _plot(table, options.out / "entangle.png")
    return {
        "about": f"{impressions:,} impressions of the simulator ({USERS} users, {ITEMS} items and "
        f"as many that arrive; factors of two kinds share {AGREEMENT}), policy wait, kinds "
        f"{' and '.join(TASKS)}. AUC of the model less that of a model of the one task, over all "
        "but the first third, by thirds of (1 + clicks) / (1 + likes) of the user's past.",
        "tables": {"AUC gained over the single-task model": table},
        "verdicts": [_verdict(gains, task, other) for task in TASKS for other in ("mmoe", "ple")],
    }


def _run(
    setting: Setting, model: str, tasks: tuple[str, ...]
) -> tuple[F64, dict[str, npt.NDArray[np.float64]]]:
    """(logits [N, T], distances of PAIRS random users and items in each task's view)."""
    own = {f"model__{model}__{k}": v for k, v in OPTIONS.items()} if model in MODELS else {}
    config = setting.config(model, tasks, model__embedding_dim=8, **own)
    views: dict[str, npt.NDArray[np.float64]] = {}

    def look(_loop: Loop, store: EmbeddingStore) -> None:
        draw = np.random.default_rng(0)
        for task in tasks:
            name = f"task:{task}" if f"task:{task}" in store.layout.sets else SHARED
            users = table_of(store, "user_id", [f"u{n}" for n in range(USERS)], [name])
            items = table_of(store, "item_id", [f"item{n}" for n in range(ITEMS)], [name])
            views[task] = distances(
                users[draw.integers(0, len(users), PAIRS)],
                items[draw.integers(0, len(items), PAIRS)],
            )
            draw = np.random.default_rng(0)  # the same pairs in every view

    return setting.run(config, look), views


def _feedback(setting: Setting) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """(labels [N, 2], bucket [N]) of the counted impressions; what a user gave until then."""
    given: Counter[tuple[str, str]] = Counter()
    ratio: dict[str, float] = {}
    labels: dict[str, list[int]] = {}
    for line in setting.log.lines:
        sample = orjson.loads(line)
        user = sample["user_id"]
        a, b = (1 + given[user, task] for task in TASKS)
        ratio[sample["impression_id"]] = a / b
        labels[sample["impression_id"]] = [sample["labels"][task] for task in TASKS]
        given.update((user, task) for task in TASKS if sample["labels"][task])
    r = np.asarray([ratio[i] for i in setting.counted])
    edges = np.quantile(r, [1 / 3, 2 / 3])
    return np.asarray([labels[i] for i in setting.counted], bool), np.digitize(r, edges)


def _verdict(gains: dict[str, dict[str, list[float]]], task: str, other: str) -> str:
    column = f"{task}, all"
    apart = np.asarray(gains["stem"][column]) - np.asarray(gains[other][column])
    found = mean_sd(apart.tolist())
    inside = ": inside 2 SD, no claim" if abs(found["mean"]) <= 2 * found["sd"] else ""
    return f"{task}: stem less {other} {found['mean']:+.4f} ± {found['sd']:.2g} AUC{inside}"


def _plot(table: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(TASKS), figsize=(5.2 * len(TASKS), 3.8), sharey=True)
    colours = {"mmoe": "#8a8a8a", "ple": "#3b6ea5", "stem": "#a53b3b"}
    groups = (*BUCKETS, "all")
    for axis, task in zip(axes, TASKS, strict=True):
        for m, model in enumerate(MODELS):
            cells = [table[model][f"{task}, {name}"] for name in groups]
            axis.bar(
                np.arange(len(groups)) + 0.27 * (m - 1),
                [cell["mean"] for cell in cells],
                0.25,
                yerr=[cell["sd"] for cell in cells],
                color=colours[model],
                capsize=3,
                label=model,
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(groups)), groups)
        axis.set(title=task, xlabel="(1 + clicks) / (1 + likes) of the user so far")
    axes[0].set_ylabel("AUC less the single-task model's")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_study("entangle", study)

"""The analysis tools' pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

_LABEL_GAP = 0.035
"""Between names one above the other, as a share of the largest strength."""


def plot_collapse(report: dict[str, Any], path: Path) -> None:
    """Bars of each table's information abundance over its width; slot towards slot, where the model
    has cross layers; the layers' effective rank, where samples were given."""
    several = any(len(sets) > 1 for sets in report["tables"].values())
    bars = {
        f"{slot} / {name}" if several else slot: of["information_abundance"] / of["dim"]
        for slot, sets in report["tables"].items()
        for name, of in sets.items()
    }
    towards = report["towards"]
    layers = {name: of["effective_rank"] / of["of"] for name, of in report["activations"].items()}
    columns = [6.0, *([6.5] if towards else []), *([5.0] if layers else [])]
    height = max(3.2, 0.26 * max(len(bars), len(layers)) + 1.2)
    figure, axes = plt.subplots(
        1, len(columns), figsize=(sum(columns), height), squeeze=False, width_ratios=columns
    )
    _bars(axes[0][0], bars, "information abundance / width")
    if towards:
        names = list(towards)
        values = [[towards[a].get(b, np.nan) for b in names] for a in names]
        axis = axes[0][1]
        shown = axis.imshow(values, cmap="viridis")
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_xlabel("towards")
        figure.colorbar(shown, ax=axis, label="information abundance of E W^T")
    if layers:
        _bars(axes[0][-1], layers, "effective rank of the output / its ceiling")
    _save(figure, path)


def _bars(axis: Any, values: dict[str, float], label: str) -> None:
    axis.barh(list(values), list(values.values()), color="#3b6ea5")
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel(label)


def plot_entanglement(report: dict[str, Any], points: dict[str, Any], path: Path) -> None:
    """Pairs by their distance in two tasks' views; on the diagonal the model cannot tell them."""
    panels = list(points.items())[:4] or [("no pairs", (np.empty(0), np.empty(0)))]
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4.6), squeeze=False)
    for axis, (name, (left, right)) in zip(axes[0], panels, strict=True):
        a, _, b = name.partition("|")
        axis.scatter(left, right, s=4, alpha=0.3, color="#a53b3b")
        axis.plot([0, 2], [0, 2], color="0.6", linewidth=0.8)
        axis.set(xlim=(-0.05, 2.05), ylim=(-0.05, 2.05), xlabel=f"distance, view of {a}")
        axis.set_ylabel(f"distance, view of {b}")
    scores = ", ".join(f"{task} {score:.2f}" for task, score in report["entanglement"].items())
    figure.suptitle(f"entanglement: {scores}" if scores else "views of two tasks")
    _save(figure, path)


def plot_correlation(report: dict[str, Any], path: Path) -> None:
    """Measured bits against learnt strength, a panel per task, a point per slot."""
    tasks = list(report["spearman"])
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        slots = sorted(report["slots"].items(), key=lambda each: each[1]["strength"])
        apart = _LABEL_GAP * max((slot["strength"] for _, slot in slots), default=1.0)
        height = -apart
        for name, slot in slots:
            bits, strength = slot["bits"][task], slot["strength"]
            height = max(strength, height + apart)
            axis.scatter(bits, strength, s=14, color="#2f7d4f")
            axis.annotate(
                name,
                (bits, strength),
                (8, height),
                textcoords=("offset points", "data"),
                fontsize=7,
                verticalalignment="center",
            )
        axis.margins(x=0.3)
        axis.locator_params(axis="x", nbins=4)
        axis.set(title=f"{task}: Spearman {report['spearman'][task]:.2f}")
        axis.set(xlabel="mutual information with the label, bits", ylabel="learnt strength")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)

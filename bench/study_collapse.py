"""Study `collapse`: does a wider set help, or more sets; and what depth leaves of the tokens' rank.

Single against multi-embedding: DCNv2 over one set of width 8k, or over k sets of width 8, each
with cross layers and an MLP of its own: as many numbers per row. RankMixer against RankUp: the same
token width, 1 to 4 blocks, effective rank of a sample's tokens after every mixer and every FFN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from study_frame import Options, mean_sd, run_study, say
from study_log import finals
from study_world import (
    Setting,
    dense_parameters,
    last_tokens,
    make_setting,
    quality,
    table_of,
)

from embedding_store.store import EmbeddingStore
from settings.config import Config
from trainer.analysis.measures import information_abundance
from trainer.loop import Loop
from trainer.parts.taps import effective_rank

WIDTH = 8
SCALES = (1, 2, 4, 8)
DEPTHS = (1, 2, 4)
USERS, ITEMS = 100, 100
Found = dict[str, dict[str, list[float]]]


def study(options: Options) -> dict[str, Any]:
    """Two tables: sets by scale, tokens by depth."""
    impressions = 3_000 if options.quick else 15_000
    sets: Found = {}
    depth: Found = {}
    layers: Found = {}
    for seed in range(options.seeds):
        setting = make_setting(seed, impressions, users=USERS, items=ITEMS, rate=100.0)
        for k in SCALES:
            _measure_sets(setting, sets, f"single {k}x", k, single=True)
            if k > 1:
                _measure_sets(setting, sets, f"multi {k}x", k, single=False)
        for model in ("rankmixer", "rankup"):
            for blocks in DEPTHS:
                _measure_depth(setting, model, blocks, depth, layers)
    tables = {
        "Sets": {arm: {k: mean_sd(v) for k, v in row.items()} for arm, row in sets.items()},
        "Depth": {arm: {k: mean_sd(v) for k, v in row.items()} for arm, row in depth.items()},
    }
    ranks = {arm: {k: mean_sd(v) for k, v in row.items()} for arm, row in layers.items()}
    _plot(tables, ranks, options.out / "collapse.png")
    return {
        "about": f"{impressions:,} impressions of the simulator ({USERS} users, {ITEMS} items and "
        "as many that arrive), policy wait, each predicted when first seen; metrics over all but "
        "the first third, mean over three tasks. `IA` is the information abundance of the users' "
        "learnt rows, the sets side by side; its ceiling is the width. `rank` is the effective "
        "rank of a sample's tokens over min(tokens, width), first mixer and last FFN, last batch. "
        "Rows learn by Adam, whose steps do not depend on a set's width.",
        "tables": tables,
        "ranks": ranks,
        "verdicts": [
            *(_against(tables["Sets"], f"multi {k}x", f"single {k}x", "auc") for k in SCALES[1:]),
            *(
                _against(tables["Sets"], f"{kind} {SCALES[-1]}x", "single 1x", "auc")
                for kind in ("single", "multi")
            ),
            *(
                _against(tables["Depth"], f"rankup L={n}", f"rankmixer L={n}", "rank, last FFN")
                for n in DEPTHS
            ),
            *(
                _against(tables["Depth"], f"rankup L={n}", f"rankmixer L={n}", "auc")
                for n in DEPTHS
            ),
        ],
    }


def _measure_sets(setting: Setting, found: Found, arm: str, k: int, *, single: bool) -> None:
    config = setting.config(
        "multi_embedding",
        model__embedding_dim=WIDTH * k if single else WIDTH,
        model__multi_embedding__interactions=("dcn",) * (1 if single else k),
    )
    names = [f"expert:{m}" for m in range(1 if single else k)]
    seen: dict[str, float] = {}

    def look(loop: Loop, store: EmbeddingStore) -> None:
        users = table_of(store, "user_id", [f"u{n}" for n in range(USERS)], names)
        seen["IA of user_id"] = information_abundance(users.T @ users)
        seen["width"] = users.shape[1]
        seen["dense parameters"] = dense_parameters(loop)

    row = _scored(setting, config, look) | seen
    _note(found, arm, row)


def _measure_depth(setting: Setting, model: str, blocks: int, found: Found, layers: Found) -> None:
    seen: dict[str, float] = {}
    parameters = 0.0

    def look(loop: Loop, _store: EmbeddingStore) -> None:
        nonlocal parameters
        parameters = dense_parameters(loop)
        for name, tokens in last_tokens(loop).items():
            ceiling = min(tokens.shape[1:])
            seen[name] = float(effective_rank(tokens).mean()) / ceiling

    config = setting.config(model, **{f"model__{model}__layers": blocks})
    row = _scored(setting, config, look)
    row |= {"rank, first mixer": seen["mix:0"], "rank, last FFN": seen[f"ffn:{blocks - 1}"]}
    _note(found, f"{model} L={blocks}", row | {"dense parameters": parameters})
    _note(layers, f"{model} L={blocks}", seen)


def _scored(setting: Setting, config: Config, look: Any) -> dict[str, float]:
    logits = setting.run(config, look)
    labels = {s["impression_id"]: s["labels"] for s in finals(setting.log)}
    y = np.asarray([[labels[i][t] for t in config.tasks] for i in setting.counted])
    return quality(logits, setting.truth(config.tasks), y)


def _note(found: Found, arm: str, row: dict[str, float]) -> None:
    columns = found.setdefault(arm, {})
    for name, value in row.items():
        columns.setdefault(name, []).append(value)
    say(f"{arm}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))


def _against(table: dict[str, Any], arm: str, other: str, column: str) -> str:
    ours, theirs = table[arm][column], table[other][column]
    gap, noise = ours["mean"] - theirs["mean"], 2 * max(ours["sd"], theirs["sd"])
    inside = ": inside 2 SD, no claim" if abs(gap) <= noise else ""
    return f"{column}, {arm} less {other}: {gap:+.4f}{inside}"


def _plot(tables: dict[str, Any], ranks: dict[str, Any], path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4))
    for kind, colour in (("single", "#3b6ea5"), ("multi", "#a53b3b")):
        scales = [k for k in SCALES if f"{kind} {k}x" in tables["Sets"] or k == 1]
        rows = [tables["Sets"].get(f"{kind} {k}x", tables["Sets"]["single 1x"]) for k in scales]
        for axis, column in ((left, "auc"), (middle, "IA of user_id")):
            means, errors = ([row[column][part] for row in rows] for part in ("mean", "sd"))
            axis.errorbar(scales, means, errors, color=colour, capsize=3, marker="o", label=kind)
    widths = [WIDTH * k for k in SCALES]
    middle.plot(SCALES, widths, color="0.6", linewidth=0.8, linestyle="--", label="ceiling")
    middle.set_yscale("log", base=2)
    for axis, label in ((left, "AUC"), (middle, "information abundance, user_id")):
        axis.set_xscale("log", base=2)
        axis.set_xticks(SCALES, [f"{k}x" for k in SCALES])
        axis.set(xlabel="numbers per row", ylabel=label)
        axis.legend()
    for arm, row in ranks.items():
        model, _, depth = arm.partition(" L=")
        values = [row[name]["mean"] for name in row]
        right.plot(
            range(len(values)),
            values,
            color={"rankmixer": "#3b6ea5", "rankup": "#a53b3b"}[model],
            linestyle={"1": ":", "2": "--", "4": "-"}[depth],
            marker=".",
            label=arm,
        )
    deepest = list(ranks[f"rankup L={DEPTHS[-1]}"])
    right.set_xticks(range(len(deepest)), deepest, rotation=60, fontsize=8)
    right.set(ylabel="effective rank / min(T, D)")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_study("collapse", study)

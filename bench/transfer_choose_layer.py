"""`headwater transfer choose-layer`: which layer of the mix tower to publish as CR, by what it is
worth downstream on the stream itself."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
from matplotlib import pyplot as plt
from study_frame import Options, lines, mean_sd, run_study, say
from study_seeds import over_seeds
from transfer_stream import (
    HISTORY,
    INTERESTS,
    TELLING,
    TELLING_UPSTREAM,
    Arm,
    CachedFields,
    Replayed,
    Version,
    make_log,
    run_arms,
    run_upstream,
    traffic,
    upstream_config,
    widths,
)

from downstream.transfer import TransferName
from settings.models import cr_layers
from trainer.representation import normalise

DOMAIN = "feed"
BEGINS = 1 / 3
"""Of the stream, when the scenarios begin."""
SHARES = (0.2, 0.04)
"""Of the labels, that a scenario learns from; all impressions score it."""
WAYS: tuple[TransferName, ...] = ("concat", "adapter")


def study(options: Options) -> dict[str, Any]:
    """One upstream run publishes every layer; per layer, downstream trainers of each scenario."""
    impressions = 8_000 if options.quick else 36_000
    aucs = over_seeds(options, "choose_layer", lambda seed: _measure(seed, impressions))
    table = {
        layer: {name: mean_sd(values) for name, values in columns.items()}
        | {"mean": mean_sd(np.mean(list(columns.values()), 0).tolist())}
        for layer, columns in aucs.items()
    }
    best = max(table, key=lambda layer: table[layer]["mean"]["mean"])
    means = {layer: np.mean(list(columns.values()), 0) for layer, columns in aucs.items()}
    rest = {n: mean_sd((means[best] - means[n]).tolist()) for n in table if n != best}
    clear = [layer for layer, gap in rest.items() if gap["mean"] > 2 * gap["sd"] > 0]
    over_input = {
        layer: {
            name: mean_sd(np.subtract(values, aucs["x0"][name]).tolist())
            for name, values in columns.items()
        }
        | {"mean": mean_sd((means[layer] - means["x0"]).tolist())}
        for layer, columns in aucs.items()
        if layer != "x0"
    }
    _plot(options, over_input)
    spread = table[best]["mean"]
    return {
        "about": "AUC of downstream trainers that read the CR aggregates of user and item, taken "
        "at each layer of the mix tower; x0 is its input. World, own fields and the way of scoring "
        "are those of study transfer, half as long: interests change altogether in 10 of 15 "
        "minutes of event time.",
        "tables": {
            "Downstream AUC by layer": table,
            "AUC less that of x0, same impressions": over_input,
        },
        "best": best,
        "verdicts": [
            f"best: {best}, mean AUC {spread['mean']:.4f} ± {spread['sd']:.2g}: "
            f'[model.lfm4ads] cr_layer = "{best}"',
            f"above outside 2 SD of the seeds' differences: {', '.join(clear) or 'none'}",
        ],
    }


def _measure(seed: int, impressions: int) -> dict[str, dict[str, float]]:
    """AUC by layer, and by scenario and way."""
    log, source = make_log(seed, impressions, **TELLING)
    flags = {**TELLING_UPSTREAM, "model__lfm4ads__cr_layer": "all"}
    config = upstream_config(source, seed, without={INTERESTS}, **flags)
    upstream = run_upstream(log, config)
    stream = traffic(log, DOMAIN, since=BEGINS)
    fields = CachedFields(upstream_config(source, seed, without={INTERESTS, HISTORY}))
    found: dict[str, dict[str, float]] = {}
    for layer, versions in _by_layer(upstream.versions, config).items():
        columns = list(itertools.product(SHARES, WAYS))
        dims = widths(versions)
        arms = [Arm(way, fields, dims, seed=seed, share=share) for share, way in columns]
        served = run_arms(arms, Replayed(versions, 1_000), stream)
        found[layer] = {
            f"{share:g} of the labels, {way}": each.auc()
            for (share, way), each in zip(columns, served, strict=True)
        }
        say(f"seed {seed}: {layer} " + ", ".join(f"{v:.4f}" for v in found[layer].values()))
    return found


def _by_layer(versions: list[Version], config: Any) -> dict[str, list[Version]]:
    """Each layer's part of the CR that was published, normalised as if published alone."""
    layers = cr_layers(config.model)
    whole = widths(versions)["cross"]
    mix = list(config.model.mix_dims)
    wide = (whole - sum(mix)) // (len(layers) - len(mix))
    ends = np.cumsum([wide] * (len(layers) - len(mix)) + mix)
    found: dict[str, list[Version]] = {}
    for layer, end, width in zip(layers, ends, np.diff([0, *ends]), strict=True):
        part = slice(int(end - width), int(end))
        found[layer] = [
            Version(
                version.event_ms,
                [
                    msgspec.structs.replace(r, vector=normalise(r.vector[None, part])[0])
                    for r in version.records
                    if r.kind == "cross" and r.vector is not None
                ],
            )
            for version in versions
        ]
    return found


def _plot(options: Options, over_input: dict[str, Any]) -> None:
    figure, axis = plt.subplots(figsize=(7, 4.2))
    names = next(iter(over_input.values()))
    lines(axis, {n: {layer: row[n] for layer, row in over_input.items()} for n in names})
    axis.axhline(0, color="black", lw=0.8)
    axis.set_ylabel("downstream AUC less that of x0")
    axis.set_xlabel("layer that CR is taken from")
    axis.set_title("same impressions; mean and SD over seeds", fontsize=9)
    figure.tight_layout()
    figure.savefig(options.out / "choose_layer.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_study("choose_layer", study, "headwater transfer choose-layer")

"""`headwater transfer choose-layer`: which layer of the mix tower to publish as CR, by what it is
worth downstream on the stream itself."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from matplotlib import pyplot as plt
from study_frame import Options, mean_sd, run_study, say
from transfer_stream import (
    Arm,
    CachedFields,
    Replayed,
    Version,
    make_log,
    run_arm,
    run_upstream,
    traffic,
    upstream_config,
    widths,
)

from downstream.transfer import TransferName
from settings.models import cr_layers
from trainer.representation import normalise

DOMAINS = ("search", "video")
WAYS: tuple[TransferName, ...] = ("concat", "adapter")


def study(options: Options) -> dict[str, Any]:
    """One upstream run publishes every layer; per layer, downstream trainers of each scenario."""
    impressions = 8_000 if options.quick else 36_000
    aucs: dict[str, dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        log, source = make_log(seed, impressions)
        config = upstream_config(source, seed, model__lfm4ads__cr_layer="all")
        upstream = run_upstream(log, config)
        fields = CachedFields(config)
        for layer, versions in _by_layer(upstream.versions, config).items():
            for domain in DOMAINS:
                for way in WAYS:
                    arm = Arm(way, fields, widths(versions), seed=seed)
                    stream = traffic(log, domain)
                    served = run_arm(arm, Replayed(versions, 1_000), stream)
                    column = aucs.setdefault(layer, {}).setdefault(f"{domain}, {way}", [])
                    column.append(served.auc())
            say(f"seed {seed}: {layer} " + ", ".join(f"{v[-1]:.4f}" for v in aucs[layer].values()))
    table = {
        layer: {name: mean_sd(values) for name, values in columns.items()}
        | {"mean": mean_sd(np.mean(list(columns.values()), 0).tolist())}
        for layer, columns in aucs.items()
    }
    best = max(table, key=lambda layer: table[layer]["mean"]["mean"])
    _plot(options, table)
    spread = table[best]["mean"]
    return {
        "about": "AUC of downstream trainers that read the CR aggregates of user and item, taken "
        "at each layer of the mix tower; x0 is its input. Interests change altogether in 10 "
        "minutes of event time.",
        "tables": {"Downstream AUC by layer": table},
        "best": best,
        "verdicts": [
            f"best: {best}, mean AUC {spread['mean']:.4f} ± {spread['sd']:.2g}: "
            f'[model.lfm4ads] cr_layer = "{best}"'
        ],
    }


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


def _plot(options: Options, table: dict[str, Any]) -> None:
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    for name in next(iter(table.values())):
        cells = [row[name] for row in table.values()]
        means, sds = [c["mean"] for c in cells], [c["sd"] for c in cells]
        axis.errorbar(list(table), means, sds, label=name, capsize=3, lw=2 if name == "mean" else 1)
    axis.set_ylabel("downstream AUC")
    axis.set_xlabel("layer that CR is taken from")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out / "choose_layer.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_study("choose_layer", study, "headwater transfer choose-layer")

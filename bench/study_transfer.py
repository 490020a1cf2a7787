"""Study `transfer`: what published vectors are worth to scenarios from large to tiny, and fresh."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib.pyplot as plt
from study_frame import Options, mean_sd, run_study, say
from transfer_stream import (
    Arm,
    CachedFields,
    Replayed,
    make_log,
    run_arm,
    run_arms,
    run_upstream,
    traffic,
    upstream_config,
    widths,
)

from downstream.scenario.model import TRANSFERS
from downstream.transfer import TransferName

DOMAINS = ("feed", "search", "video", "marketplace")
"""80, 16, 3.7 and 0.3 % of the traffic."""
PERIODS = {"1 s": 1_000, "10 s": 10_000, "60 s": 60_000, "10 min": 600_000}
FRESH_OF = ("search",)
FRESH_WAY: TransferName = "concat"


def study(options: Options) -> dict[str, Any]:
    """AUC per scenario and way of transfer; then per publish period."""
    impressions = 8_000 if options.quick else 36_000
    aucs: dict[str, dict[str, list[float]]] = {d: {t: [] for t in TRANSFERS} for d in DOMAINS}
    fresh: dict[str, dict[str, list[float]]] = {d: {p: [] for p in PERIODS} for d in FRESH_OF}
    sizes: dict[str, int] = {}
    future = 0
    for seed in range(options.seeds):
        log, source = make_log(seed, impressions)
        config = upstream_config(source, seed)
        upstream = run_upstream(log, config)
        fields, dims = CachedFields(config), widths(upstream.versions)
        tower = upstream.towers[0][1]
        for domain in DOMAINS:
            stream = traffic(log, domain)
            sizes[domain] = stream.served
            arms = [Arm(t, fields, dims, tower=tower, seed=seed) for t in TRANSFERS]
            found = run_arms(arms, Replayed(upstream.versions, 1_000), stream)
            for transfer, served in zip(TRANSFERS, found, strict=True):
                aucs[domain][transfer].append(served.auc())
                future += served.from_future
            if domain in FRESH_OF:
                for name, period_ms in PERIODS.items():
                    arm = Arm(FRESH_WAY, fields, dims, seed=seed)
                    served = run_arm(arm, Replayed(upstream.versions, period_ms), stream)
                    fresh[domain][name].append(served.auc())
        say(f"seed {seed}: " + ", ".join(f"{d} {_lifts(aucs[d])}" for d in DOMAINS))
    return _result(options, aucs, fresh, sizes, future)


def _lifts(of: dict[str, list[float]]) -> str:
    return " ".join(f"{t} {of[t][-1]:.3f}" for t in of)


def _result(
    options: Options, aucs: Any, fresh: Any, sizes: dict[str, int], future: int
) -> dict[str, Any]:
    names = {d: f"{d} ({sizes[d]:,} impressions)" for d in DOMAINS}
    lift = {
        d: {t: [a - b for a, b in zip(aucs[d][t], aucs[d]["none"], strict=True)] for t in TRANSFERS}
        for d in DOMAINS
    }
    tables: dict[str, Any] = {
        "AUC": {names[d]: {t: mean_sd(aucs[d][t]) for t in TRANSFERS} for d in DOMAINS},
        "Lift over none, same impressions": {
            names[d]: {t: mean_sd(lift[d][t]) for t in TRANSFERS[1:]} for d in DOMAINS
        },
        "AUC of concat by publish period": {
            names[d]: {p: mean_sd(fresh[d][p]) for p in PERIODS} for d in FRESH_OF
        },
    }
    _plot(options, tables, names)
    verdicts = []
    for transfer in TRANSFERS[1:]:
        means = [mean_sd(lift[d][transfer]) for d in DOMAINS]
        clear = [d for d, m in zip(DOMAINS, means, strict=True) if m["mean"] > 2 * m["sd"]]
        grows = all(a["mean"] < b["mean"] for a, b in itertools.pairwise(means))
        told = ", ".join("{:+.4f}".format(m["mean"]) for m in means)
        verdicts.append(
            f"{transfer}: lift {told} from large to tiny; "
            f"{'grows' if grows else 'does not grow'} throughout; above 2 SD in "
            f"{', '.join(clear) or 'none'}"
        )
    for domain in FRESH_OF:
        loss = [a - b for a, b in zip(fresh[domain]["1 s"], fresh[domain]["10 min"], strict=True)]
        found = mean_sd(loss)
        verdicts.append(f"{domain}: 1 s over 10 min {found['mean']:+.4f} ± {found['sd']:.2g} AUC")
    verdicts.append(f"vectors newer than their impression that were used: 0 ({future} refused)")
    return {
        "about": "Downstream trainers of one scenario each, over published vectors of one upstream "
        "model that learns all scenarios. Every impression is served with what was readable then, "
        "and learnt when its label is final; AUC of clicks over the last two thirds. Interests "
        "change altogether in 10 minutes of event time. Versions every second unless the table "
        "says otherwise.",
        "tables": tables,
        "verdicts": verdicts,
    }


def _plot(options: Options, tables: dict[str, Any], names: dict[str, str]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for transfer in TRANSFERS[1:]:
        cells = [tables["Lift over none, same impressions"][names[d]][transfer] for d in DOMAINS]
        left.errorbar(
            DOMAINS, [c["mean"] for c in cells], [c["sd"] for c in cells], label=transfer, capsize=3
        )
    left.axhline(0, color="grey", lw=0.8)
    left.set_ylabel("AUC over none")
    left.legend()
    for domain in FRESH_OF:
        cells = [tables["AUC of concat by publish period"][names[domain]][p] for p in PERIODS]
        right.errorbar(
            list(PERIODS), [c["mean"] for c in cells], [c["sd"] for c in cells], label=domain,
            capsize=3,
        )  # fmt: skip
    right.set_xlabel("publish period")
    right.set_ylabel("AUC, concat")
    right.legend()
    figure.tight_layout()
    figure.savefig(options.out / "transfer.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_study("transfer", study)

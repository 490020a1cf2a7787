"""Study `transfer`: what published vectors are worth to scenarios from large to tiny, and fresh.

World, settings and the ways' own linear terms were chosen on seed 100.
"""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
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
    make_log,
    run_arms,
    run_upstream,
    traffic,
    upstream_config,
    widths,
)

from downstream.scenario.model import TRANSFERS
from downstream.transfer import TransferName

DOMAIN = "feed"
IMPRESSIONS = 72_000
"""Half an hour: three times the longest publish period, and in which interests change."""
BEGINS = 1 / 3
"""Of the stream, when the scenarios begin: the upstream has learnt by then."""
SHARES = {"all": (1.0, 1), "1/5": (0.2, 1), "1/25": (0.04, 1), "1/125": (0.008, 2)}
"""Of the labels, that a scenario learns from, and how many such scenarios are averaged."""
WAYS: dict[str, tuple[TransferName, bool]] = {
    **{transfer: (transfer, False) for transfer in TRANSFERS},
    "iim, frozen": ("iim", True),
}
"""Way -> its module, and whether the upstream's layers in it stay as they came."""
PERIODS = {"1 s": 1_000, "10 s": 10_000, "60 s": 60_000, "10 min": 600_000}
BUCKETS = 2**12
"""For some two hundred users and ads."""
FRESH_SHARE = 0.1
FRESH_WAYS = ("concat", "retrieval", "iim, frozen")


def study(options: Options) -> dict[str, Any]:
    """AUC per size of scenario and way of transfer; then per publish period."""

    def measure(seed: int) -> dict[str, Any]:
        found = _measure(seed, 8_000 if options.quick else IMPRESSIONS)
        for name, row in itertools.chain(found["sizes"].items(), found["periods"].items()):
            say(f"seed {seed}, {name}: " + ", ".join(f"{n} {auc:.4f}" for n, auc in row.items()))
        return found

    return _result(options, over_seeds(options, "transfer", measure))


def _measure(seed: int, impressions: int) -> dict[str, Any]:
    """One upstream run; every scenario over its versions. AUC by share of the labels and way
    (`sizes`), by way and publish period (`periods`); `labels` that one scenario learns from, by
    share; `refused`: vectors newer than their impression."""
    sizes: dict[str, dict[str, float]] = {}
    periods: dict[str, dict[str, float]] = {way: {} for way in FRESH_WAYS}
    labels: dict[str, int] = {}
    refused = 0
    log, source = make_log(seed, impressions, **TELLING)
    config = upstream_config(source, seed, without={INTERESTS}, **TELLING_UPSTREAM)
    own = upstream_config(source, seed, without={INTERESTS, HISTORY}, **TELLING_UPSTREAM)
    upstream = run_upstream(log, config, tower_every=20)
    stream = traffic(log, DOMAIN, since=BEGINS)
    fields, dims = CachedFields(own, buckets=BUCKETS), widths(upstream.versions)
    began = stream.chunks[0][0]
    tower = [tower for at, tower in upstream.towers if at <= began][-1]

    def arm(way: str, share: float, slice_: int = 0) -> Arm:
        module, frozen = WAYS[way]
        return Arm(module, fields, dims, tower, frozen, seed=seed, share=share, slice_=slice_)

    for name, (share, repeats) in SHARES.items():
        names = [(way, n) for n in range(repeats) for way in WAYS]
        arms = [arm(way, share, n) for way, n in names]
        served = run_arms(arms, Replayed(upstream.versions, 1_000), stream)
        sizes[name] = {
            way: float(
                np.mean([s.auc() for s, (w, _) in zip(served, names, strict=True) if w == way])
            )
            for way in WAYS
        }
        refused += sum(s.from_future for s in served)
        labels[name] = round(share * len(served[0].labels))
    for period, period_ms in PERIODS.items():
        arms = [arm(way, FRESH_SHARE) for way in FRESH_WAYS]
        served = run_arms(arms, Replayed(upstream.versions, period_ms), stream)
        for way, each in zip(FRESH_WAYS, served, strict=True):
            periods[way][period] = each.auc()
    return {"sizes": sizes, "periods": periods, "labels": labels, "refused": refused}


def _result(options: Options, found: dict[str, Any]) -> dict[str, Any]:
    names = {s: f"{s} of the labels ({np.mean(found['labels'][s]):,.0f})" for s in SHARES}
    lift = {
        s: {w: _less(row[w], row["none"]) for w in WAYS if w != "none"}
        for s, row in found["sizes"].items()
    }
    tables: dict[str, Any] = {
        "AUC": _means({names[s]: row for s, row in found["sizes"].items()}),
        "Lift over none, same impressions": _means({names[s]: row for s, row in lift.items()}),
        "AUC by publish period": _means(found["periods"]),
        "AUC less that with a version every second, same impressions": _means(
            {
                way: {p: _less(row[p], row["1 s"]) for p in PERIODS if p != "1 s"}
                for way, row in found["periods"].items()
            }
        ),
    }
    _plot(options, tables, names)
    verdicts = [_growth(way, [lift[s][way] for s in SHARES]) for way in WAYS if way != "none"]
    for way, periods in found["periods"].items():
        told = [_told(p, _less(periods["1 s"], periods[p])) for p in ("10 s", "60 s", "10 min")]
        verdicts.append(f"{way}, a version every second: {'; '.join(told)}")
    verdicts.append(f"vectors newer than their impression: {sum(found['refused'])} met, none used")
    users, minutes = TELLING["users"], IMPRESSIONS / TELLING["rate"] / 60
    return {
        "about": "Downstream trainers over published vectors of one upstream model that learns all "
        f"of a stream of {minutes:.0f} minutes of event time ({users} users, whose interests "
        "change altogether in 10 minutes; an ad arrives every 30 s). They begin after a third of "
        f"it. A scenario is a part of domain {DOMAIN}: it learns from its share of the labels, "
        "and is scored on all impressions of the domain, the same for every size, so that a tiny "
        "one's AUC is no noisier than a large one's (the smallest is the mean of two). Every "
        "impression is served with what was readable then, and learnt when its label is final; AUC "
        "of clicks over the last two thirds. Interests are not given as a feature; what the user "
        "clicked is given to the upstream, not to the scenarios, which know ids, ad and context. "
        "The upstream has no first-order term: what it says beside the towers is in no vector. "
        f"Versions every second unless the table says otherwise; periods at {FRESH_SHARE:g} of the "
        "labels. World and settings were chosen on seed 100, which is not in the table; an earlier "
        "design, a domain of the simulator each (28,755 to 103 impressions), found growing lifts "
        "inside 2 SD, and 10 min no worse than 1 s.",
        "tables": tables,
        "verdicts": verdicts,
    }


def _less(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _means(rows: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    return {name: {k: mean_sd(v) for k, v in row.items()} for name, row in rows.items()}


def _growth(way: str, lifts: list[list[float]]) -> str:
    means = [mean_sd(each)["mean"] for each in lifts]
    steps = [_less(small, large) for large, small in itertools.pairwise(lifts)]
    grows = sum(mean_sd(step)["mean"] > 0 for step in steps)
    told = ", ".join(f"{mean:+.4f}" for mean in means)
    return (
        f"{way}: lift {told} from large to tiny; grows in {grows} of {len(steps)} steps; tiny over "
        f"large {_told('', _less(lifts[-1], lifts[0]))}"
    )


def _told(over: str, differences: list[float]) -> str:
    """With what it is over, and whether outside 2 SD."""
    found = mean_sd(differences)
    outside = abs(found["mean"]) > 2 * found["sd"] and found["seeds"] > 1
    side = "outside" if outside else "inside"
    before = f"over {over} " if over else ""
    return f"{before}{found['mean']:+.4f} ± {found['sd']:.2g}, {side} 2 SD"


def _plot(options: Options, tables: dict[str, Any], names: dict[str, str]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    lifts = tables["Lift over none, same impressions"]
    ways = list(next(iter(lifts.values())))
    lines(left, {w: {share: lifts[name][w] for share, name in names.items()} for w in ways})
    left.set_xlabel("share of the labels that a scenario learns from")
    left.set_ylabel("AUC less that of none")
    lines(right, tables["AUC less that with a version every second, same impressions"])
    right.set_xlabel("publish period")
    right.set_ylabel("AUC less that with a version every second")
    for axis in (left, right):
        axis.axhline(0, color="black", lw=0.8)
    figure.suptitle("same impressions; mean and SD over seeds", fontsize=9)
    figure.tight_layout()
    figure.savefig(options.out / "transfer.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_study("transfer", study)

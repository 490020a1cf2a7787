"""`headwater transfer skew`: what a downstream model loses when the vectors move under it.

One side is fixed (a downstream model that learns no more from the middle of the stream on), the
other is swept: the versions go on, or are those of an upstream retrained from another start. Each
in the model's own basis and in the anchored one (`trainer.basis`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from study_frame import Options, lines, mean_sd, run_study, say
from study_log import Log
from study_seeds import over_seeds
from transfer_stream import (
    HISTORY,
    INTERESTS,
    TELLING,
    TELLING_UPSTREAM,
    Arm,
    CachedFields,
    Replayed,
    Traffic,
    Upstream,
    make_log,
    run_arm,
    run_upstream,
    traffic,
    upstream_config,
    widths,
)

from downstream.transfer import TransferName
from settings.config import Config
from topics.names import KINDS, Kind

DOMAIN = "feed"
WAYS: tuple[TransferName, ...] = ("concat", "retrieval")
FIXED_AT = 0.5
BASES = ("free", "anchored")
SIDES = ("same version", "later versions", "retrained")
LESS = "AUC less that with the same version, same impressions"
COSINES = "Cosine of an entity's vector to its own when the model was fixed"


def study(options: Options) -> dict[str, Any]:
    """AUC behind the fixed model per way, basis and other side; cosine drift per kind and basis."""
    impressions = 8_000 if options.quick else 36_000
    found = over_seeds(options, "skew", lambda seed: _measure(seed, impressions))
    aucs, cosines = found["auc"], found["cosine"]
    tables: dict[str, Any] = {
        "AUC behind a fixed downstream model": {
            arm: {side: mean_sd(values) for side, values in row.items()}
            for arm, row in aucs.items()
        },
        LESS: {
            arm: {
                side: mean_sd(np.subtract(row[side], row[SIDES[0]]).tolist()) for side in SIDES[1:]
            }
            for arm, row in aucs.items()
        },
        COSINES: {
            arm: {kind: mean_sd(values) for kind, values in row.items()}
            for arm, row in cosines.items()
        },
    }
    _plot(options, tables, found["curve"])
    return {
        "about": "A downstream trainer learns for the first half of the stream and is fixed then; "
        "AUC over the second half, when its vectors stay those of that moment, go on with the "
        "upstream, or come from an upstream retrained on the same log from another start. World "
        "and own fields are those of study transfer, half as long: interests change altogether in "
        "10 of 15 minutes of event time, so that a fixed model also falls behind the world.",
        "tables": tables,
        "verdicts": [_verdict(way, aucs) for way in WAYS],
    }


def _measure(seed: int, impressions: int) -> dict[str, Any]:
    """`auc` by way and basis, and by side; `cosine` by side and basis, and by kind; `curve` [10]
    of CR's cosine by basis."""
    log, source = make_log(seed, impressions, **TELLING)
    stream = traffic(log, DOMAIN)
    fixed_ms = stream.chunks[int(len(stream.chunks) * FIXED_AT)][0]
    fields = CachedFields(upstream_config(source, seed, without={INTERESTS, HISTORY}))
    found: dict[str, Any] = {"auc": {}, "cosine": {}, "curve": {}}
    for basis in BASES:
        flags = {**TELLING_UPSTREAM, "publish__basis": basis}
        config = upstream_config(source, seed, without={INTERESTS}, **flags)
        upstream = run_upstream(log, config)
        restarted = upstream_config(source, seed + 1_000, without={INTERESTS}, **flags)
        other = _retrained(log, restarted, upstream, fixed_ms)
        for side, versions in (("later versions", upstream), ("retrained", other)):
            drift = _drift(upstream, versions, fixed_ms, stream.chunks[-1][0])
            found["cosine"][f"{side}, {basis}"] = drift
        found["curve"][basis] = _curve(upstream, stream, fixed_ms)
        for way in WAYS:
            arm = Arm(way, fields, widths(upstream.versions), seed=seed)
            aucs = {side: _fixed(arm, upstream, other, stream, side) for side in SIDES}
            found["auc"][f"{way}, {basis}"] = aucs
            say(f"seed {seed}, {way}, {basis}: {aucs}")
    return found


def _retrained(log: Log, config: Config, first: Upstream, fixed_ms: int) -> Upstream:
    """The same log from another start; anchored, in the basis of the first one's vectors."""
    if config.publish.basis == "free":
        return run_upstream(log, config)
    shown = Replayed(first.versions, 1_000)
    shown.advance(fixed_ms)
    published: dict[Kind, dict[bytes, Any]] = {}
    for kind in KINDS:
        ids, vectors = shown.tables[kind].matrix()
        before = "" if kind == "cross" else f"{kind}:"
        published[kind] = {
            (before + i).encode(): vector for i, vector in zip(ids, vectors, strict=True)
        }
    return run_upstream(log, config, adopted=published)


def _fixed(arm: Arm, upstream: Upstream, other: Upstream, stream: Traffic, side: str) -> float:
    def swap(reader: Replayed) -> Replayed:
        if side == "later versions":
            return reader
        if side == "same version":
            reader.stop()
            return reader
        return Replayed(other.versions, 1_000)

    served = run_arm(arm, Replayed(upstream.versions, 1_000), stream, freeze_at=FIXED_AT, swap=swap)
    return served.auc(since=FIXED_AT)


def _drift(first: Upstream, other: Upstream, then_ms: int, now_ms: int) -> dict[str, float]:
    """Mean cosine per kind between the first's vectors then and the other's now."""
    then, now = Replayed(first.versions, 1_000), Replayed(other.versions, 1_000)
    then.advance(then_ms)
    now.advance(now_ms)
    return {kind: _cosine(then, now, kind) for kind in KINDS}


def _cosine(then: Replayed, now: Replayed, kind: Kind) -> float:
    ids, before = then.tables[kind].matrix()
    taken = now.take(kind, ids)
    a, b = before[taken.found], taken.vectors[taken.found]
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-12
    return float(((a * b).sum(1) / norms).mean())


def _curve(upstream: Upstream, stream: Traffic, fixed_ms: int) -> list[float]:
    """Cosine of CR at ten moments after the model was fixed."""
    then, now = Replayed(upstream.versions, 1_000), Replayed(upstream.versions, 1_000)
    then.advance(fixed_ms)
    found = []
    for moment in np.linspace(fixed_ms, stream.chunks[-1][0], 11)[1:]:
        now.advance(int(moment))
        found.append(_cosine(then, now, "cross"))
    return found


def _verdict(way: str, aucs: dict[str, dict[str, list[float]]]) -> str:
    told = []
    for side in SIDES[1:]:
        gains = [
            a - b
            for a, b in zip(aucs[f"{way}, anchored"][side], aucs[f"{way}, free"][side], strict=True)
        ]
        gain = mean_sd(gains)
        told.append(f"{side} {gain['mean']:+.4f} ± {gain['sd']:.2g}")
    return f"{way}: anchored over free, same impressions: {'; '.join(told)} AUC"


def _plot(options: Options, tables: dict[str, Any], curves: dict[str, list[list[float]]]) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.4))
    lines(left, tables[LESS], joined=False)
    left.axhline(0, color="black", lw=0.8)
    left.set_title("behind a model that was fixed", fontsize=9)
    left.set_ylabel("AUC less that with the vectors it was fixed with")
    cosines = tables[COSINES]
    lines(middle, cosines, joined=False)
    middle.set_ylim(top=1.02)
    middle.set_title("at the end, of an entity to itself when the model was fixed", fontsize=9)
    middle.set_ylabel("cosine")
    for basis, runs in curves.items():
        mean, sd = np.mean(runs, 0), np.std(runs, 0)
        at = np.arange(1, 11) / 10
        right.plot(at, mean, label=basis)
        right.fill_between(at, mean - sd, mean + sd, alpha=0.2)
    right.set_title("of CR, as versions go on", fontsize=9)
    right.set_xlabel("share of the second half of the stream")
    right.set_ylabel("cosine")
    right.grid(axis="y", lw=0.4, alpha=0.6)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out / "skew.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_study("skew", study, "headwater transfer skew")

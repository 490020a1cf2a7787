"""Study `delay`: delayed-feedback losses against oracle labels, on one stream with known truth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
import orjson
from measuring import config_of
from study_frame import Options, bars, mean_sd, regret, run_study, run_trainer, say, scores
from study_log import Log, joined
from study_seeds import Kept, gathered

from runtime.sources.simulated import SimulatedTraffic
from settings.config import Config

START_MS = 1_700_006_400_000
LOSSES = ("vanilla", "fnw", "fnc", "es_dfm", "defer", "defuse")
ORACLE = "oracle"
GOAL = 0.6
"""Of (oracle - vanilla), recovered."""
ARMS = (*LOSSES, ORACLE)
ELAPSED = "1s"
"""Two in five clicks and hardly a purchase convert within it."""
USERS, ITEMS = 40, 150
SHIFT = 2.0
"""Of every logit: where conversions are rare, what vanilla loses, p / (1 + dp), is within noise."""


class _World:
    """One seed's stream, read by every loss."""

    def __init__(self, seed: int, impressions: int) -> None:
        self._seed = seed
        self._source = SimulatedTraffic(
            start_ms=START_MS,
            seed=seed,
            rate=100.0,
            users=USERS,
            items=ITEMS,
            faults=False,
            logit_shift=SHIFT,
        )
        self._impressions = impressions

    @cached_property
    def _log(self) -> Log:
        return joined(self._source, self._config("vanilla"), self._impressions)

    def measure(self, arm: str) -> dict[str, float]:
        """regret, auc and pcoc of `arm`, over all but the first third."""
        log = self._log
        config = self._config("vanilla" if arm == ORACLE else arm)
        predictions = run_trainer(_oracle(log) if arm == ORACLE else log, config)
        counted = list(log.truth)[len(log.truth) // 3 :]
        logits = np.stack([predictions[i] for i in counted]).astype(np.float64)
        truth = np.asarray([[log.truth[i][k] for k in config.tasks] for i in counted])
        labels = _labels(log, config.tasks)
        y = np.asarray([labels[i] for i in counted], bool)
        tasks = range(y.shape[1])
        p = 1 / (1 + np.exp(-logits))
        found = {
            "regret": float(np.mean([regret(logits[:, t], truth[:, t]) for t in tasks])),
            "auc": float(np.mean([scores(logits[:, t], y[:, t])["auc"] for t in tasks])),
            "pcoc": float(p.sum() / truth.sum()),
        }
        say(f"seed {self._seed}: {arm} regret {found['regret']:.5f}")
        return found

    def _config(self, loss: str) -> Config:
        return config_of(
            self._source.config_values(),
            join__policy="correct",
            join__elapsed=ELAPSED,
            model__name="shared_bottom",
            model__delayed_feedback=loss,
            trainer__cut_by="count",
            trainer__batch_samples_max=256,
            trainer__commit_every_steps=100,
            trainer__seed=self._seed,
            optimizer__sparse="adam",
            optimizer__sparse_lr=0.01,
            optimizer__dense_lr=0.005,
        )


def study(options: Options) -> dict[str, Any]:
    """Regret, AUC and PCOC per loss; `oracle` reads the final labels in the early sample."""
    impressions = 4_000 if options.quick else 15_000
    kept = Kept(options, "delay")
    seeds = []
    for seed in range(options.seeds):
        world = _World(seed, impressions)
        seeds.append({arm: kept.take(partial(world.measure, arm), seed, arm) for arm in ARMS})
    found = gathered(seeds)
    recovered = {arm: mean_sd([_recovered(of, arm) for of in seeds]) for arm in LOSSES}
    table = {
        arm: {
            **{name: mean_sd(column) for name, column in columns.items()},
            "recovered": recovered.get(arm, "1"),
        }
        for arm, columns in found.items()
    }
    # regret itself differs more between worlds than between arms
    bars(
        options.out / "delay.png",
        {arm: recovered[arm] for arm in LOSSES[1:]},
        f"recovered of (vanilla - oracle),\n± SD over {options.seeds} seeds",
        {"oracle": 1.0, "goal": GOAL},
    )
    best = max(LOSSES, key=lambda arm: recovered[arm]["mean"])
    chosen = table[best]
    return {
        "about": f"{impressions:,} impressions of the simulator ({USERS} users, logits shifted by "
        f"{SHIFT}). Every loss over the same stream of early, correction and final samples; "
        "`oracle` reads the final labels in the early sample. Regret to the true probabilities, "
        "mean over three tasks; PCOC against them; all but the first third. Recovered = (vanilla "
        "- loss) / (vanilla - oracle) regret, seed by seed; the three of a nuisance model learn "
        "it from matured samples on the way.",
        "elapsed": ELAPSED,
        "tables": {"Losses": table},
        "best": best,
        "verdicts": [
            f"best: {best} recovers {chosen['recovered']['mean']:.2f} ± "
            f"{chosen['recovered']['sd']:.2g} (goal: at least {GOAL}; {_stands(recovered[best])}), "
            f"PCOC {chosen['pcoc']['mean']:.3f} ± {chosen['pcoc']['sd']:.2g} (goal: within 3 %)",
        ],
    }


def _stands(found: Mapping[str, float]) -> str:
    gap = found["mean"] - GOAL
    if found["seeds"] < 2 or abs(gap) <= 2 * found["sd"]:
        return "the gap to it is inside 2 SD"
    return f"{'above' if gap > 0 else 'below'} it by more than 2 SD"


def _recovered(of: Mapping[str, Mapping[str, float]], arm: str) -> float:
    """How much of vanilla's regret above the oracle's `arm` has not."""
    low, best = of["vanilla"]["regret"], of[ORACLE]["regret"]
    return (low - of[arm]["regret"]) / (low - best)


def _labels(log: Log, tasks: tuple[str, ...]) -> dict[str, list[int]]:
    labels = {}
    for line in log.lines:
        sample = orjson.loads(line)
        if sample["state"] == "final":
            labels[sample["impression_id"]] = [sample["labels"][task] for task in tasks]
    return labels


def _oracle(log: Log) -> Log:
    """The final's labels in the early sample, and no corrections."""
    samples = [orjson.loads(line) for line in log.lines]
    final = {s["impression_id"]: s for s in samples if s["state"] == "final"}
    lines, times = [], []
    for sample, at in zip(samples, log.emitted_ms, strict=True):
        if sample["state"] == "correction":
            continue
        if sample["state"] == "early":
            known = final[sample["impression_id"]]
            sample["labels"], sample["delays_ms"] = known["labels"], known["delays_ms"]
        lines.append(orjson.dumps(sample))
        times.append(at)
    return Log(lines, times, log.truth)


if __name__ == "__main__":
    run_study("delay", study)

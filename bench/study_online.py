"""Study `online`: what learning every minute is worth under drift, against known truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from measuring import config_of
from study_frame import Options, bars, mean_sd, regret, run_study, run_trainer, say
from study_log import joined

from runtime.sources.simulated import SimulatedTraffic
from runtime.sources.world import DRIFT_MS
from trainer.arms import DAILY, FROZEN, LIVE
from trainer.batch import Batch
from trainer.loop import Loop

START_MS = 1_700_006_400_000
ARMS = (LIVE, DAILY, FROZEN)
USERS, ITEMS, RATE, DAYS = 20, 40, 10.0, 2.5
"""Few users: what a model can know of one must be more than what changes meanwhile, or every arm's
regret is what it could not learn and not what it has missed."""


def study(options: Options) -> dict[str, Any]:
    """Regret per arm over the impressions that all arms predicted, per seed."""
    impressions = 12_000 if options.quick else 180_000
    day_ms = round(1000 * impressions / RATE / DAYS)
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        source = SimulatedTraffic(
            start_ms=START_MS,
            seed=seed,
            rate=RATE,
            faults=False,
            users=USERS,
            items=ITEMS,
            item_arrival_ms=120_000,
        )
        config = config_of(
            source.config_values(),
            join__policy="wait",
            model__name="fm",
            trainer__cut_by="count",
            trainer__batch_samples_max=256,
            trainer__commit_every_steps=50,
            trainer__seed=seed,
            evaluation__arms=True,
            evaluation__arms_every=f"{day_ms // 1000}s",
            evaluation__arms_share=0.5,
            # Steps of Adagrad shrink for ever, so that a row stops following what drifts.
            optimizer__sparse="adam",
            optimizer__sparse_lr=0.01,
        )
        log = joined(source, config, impressions)
        said: dict[str, dict[str, npt.NDArray[np.float32]]] = {arm: {} for arm in ARMS}

        def watch(loop: Loop, said: dict[str, Any] = said) -> None:
            def note(samples: Batch, predicted: dict[str, Any]) -> None:
                ids = [id_.decode() for id_ in samples.impressions]
                for arm, values in predicted.items():
                    said[arm].update(zip(ids, values, strict=True))

            assert loop.arms is not None
            loop.arms.watch = note

        run_trainer(log, config, watch=watch)
        # In the second day yesterday's model is the frozen one, too. Half of the impressions are
        # asked of the arms.
        counted = [
            id_
            for n, id_ in enumerate(log.truth)
            if id_ in said[LIVE] and n > len(log.truth) / DAYS
        ]
        truth = np.asarray([[log.truth[i][k] for k in config.tasks] for i in counted])
        for arm in ARMS:
            logits = np.stack([said[arm][i] for i in counted]).astype(np.float64)
            found[arm].append(float(np.mean([regret(logits[:, t], truth[:, t]) for t in range(3)])))
        say(f"seed {seed}: " + ", ".join(f"{arm} {found[arm][-1]:.5f}" for arm in ARMS))
    table = {arm: {"regret (nats)": mean_sd(values)} for arm, values in found.items()}
    bars(options.out / "online.png", {a: r["regret (nats)"] for a, r in table.items()}, "regret")
    ratios = [live / daily for live, daily in zip(found[LIVE], found[DAILY], strict=True)]
    ratio = mean_sd(ratios)
    return {
        "about": "Regret to the simulator's true probabilities, mean over three tasks, of the live "
        f"model, of yesterday's and of the first day's, over the same {impressions:,} impressions "
        f"but for the first day's ({USERS} users, {ITEMS} items and as many that arrive). A day is "
        f"{day_ms / 60_000:.0f} minutes, and interests keep {math.exp(-day_ms / DRIFT_MS / 2):.2f} "
        "of themselves (correlation) from one day to the next.",
        "tables": {"Regret": table},
        "live_over_daily": ratio,
        "verdicts": [
            f"live / daily = {ratio['mean']:.3f} ± {ratio['sd']:.2g} (goal: at most 0.5)",
        ],
    }


if __name__ == "__main__":
    run_study("online", study)

"""Study `online`: what learning every minute is worth under drift, against known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from measuring import config_of
from study_frame import Options, bars, mean_sd, regret, run_study, run_trainer, say
from study_log import joined

from runtime.sources.simulated import SimulatedTraffic
from trainer.arms import DAILY, FROZEN, LIVE
from trainer.batch import Batch
from trainer.loop import Loop

START_MS = 1_700_006_400_000
DAY_MS = 900_000
"""A day of this world: interests change altogether in half an hour (`runtime/sources/world.py`)."""
ARMS = (LIVE, DAILY, FROZEN)


def study(options: Options) -> dict[str, Any]:
    """Regret per arm over the impressions that all arms predicted, per seed."""
    impressions, rate = (20_000, 10.0) if options.quick else (240_000, 25.0)
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        source = SimulatedTraffic(
            start_ms=START_MS, seed=seed, rate=rate, faults=False, users=1_500, items=400
        )
        config = config_of(
            source.config_values(),
            join__policy="correct",
            model__name="lfm4ads",
            trainer__cut_by="count",
            trainer__batch_samples_max=128,
            trainer__commit_every_steps=20,
            trainer__seed=seed,
            evaluation__arms=True,
            evaluation__arms_every=f"{DAY_MS // 1000}s",
            evaluation__arms_share=1.0,
            optimizer__sparse_lr=0.1,
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
        # The day after the first copy is the same model for daily and frozen: it is left out.
        counted = [
            id_ for n, id_ in enumerate(log.truth) if id_ in said[LIVE] and n > len(log.truth) // 3
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
        "model, of yesterday's and of the first day's, over the same impressions. A day is "
        f"{DAY_MS // 60_000} minutes; users' interests change altogether in 30.",
        "tables": {"Regret": table},
        "live_over_daily": ratio,
        "verdicts": [
            f"live / daily = {ratio['mean']:.3f} ± {ratio['sd']:.2g} (goal: at most 0.5)",
        ],
    }


if __name__ == "__main__":
    run_study("online", study)

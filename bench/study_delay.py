"""Study `delay`: delayed-feedback losses against oracle labels, on one stream with known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from measuring import config_of
from study_frame import Options, bars, mean_sd, regret, run_study, run_trainer, say, scores
from study_log import Log, joined

from runtime.sources.simulated import SimulatedTraffic

START_MS = 1_700_006_400_000
LOSSES = ("vanilla", "fnw", "fnc", "es_dfm", "defer", "defuse")
ELAPSED = "1s"
"""Two in five clicks and hardly a purchase convert within it."""
USERS, ITEMS = 40, 150
SHIFT = 2.0
"""Of every logit: where conversions are rare, what vanilla loses, p / (1 + dp), is within noise."""


def study(options: Options) -> dict[str, Any]:
    """Regret, AUC and PCOC per loss; `oracle` reads the final labels in the early sample."""
    impressions = 4_000 if options.quick else 15_000
    found: dict[str, dict[str, list[float]]] = {
        arm: {"regret": [], "auc": [], "pcoc": []} for arm in (*LOSSES, "oracle")
    }
    recovered: dict[str, list[float]] = {arm: [] for arm in LOSSES}
    for seed in range(options.seeds):
        source = SimulatedTraffic(
            start_ms=START_MS,
            seed=seed,
            rate=100.0,
            users=USERS,
            items=ITEMS,
            faults=False,
            logit_shift=SHIFT,
        )
        values = source.config_values()
        log = None
        for arm in found:
            config = config_of(
                values,
                join__policy="correct",
                join__elapsed=ELAPSED,
                model__name="shared_bottom",
                model__delayed_feedback="vanilla" if arm == "oracle" else arm,
                trainer__cut_by="count",
                trainer__batch_samples_max=256,
                trainer__commit_every_steps=100,
                trainer__seed=seed,
                optimizer__sparse="adam",
                optimizer__sparse_lr=0.01,
                optimizer__dense_lr=0.005,
            )
            log = joined(source, config, impressions) if log is None else log
            read = _oracle(log) if arm == "oracle" else log
            predictions = run_trainer(read, config)
            counted = list(log.truth)[len(log.truth) // 3 :]
            logits = np.stack([predictions[i] for i in counted]).astype(np.float64)
            truth = np.asarray([[log.truth[i][k] for k in config.tasks] for i in counted])
            labels = _labels(log, config.tasks)
            y = np.asarray([labels[i] for i in counted], bool)
            per_task = [scores(logits[:, t], y[:, t]) for t in range(y.shape[1])]
            found[arm]["regret"].append(
                float(np.mean([regret(logits[:, t], truth[:, t]) for t in range(y.shape[1])]))
            )
            p = 1 / (1 + np.exp(-logits))
            found[arm]["pcoc"].append(float(p.sum() / truth.sum()))
            found[arm]["auc"].append(float(np.mean([s["auc"] for s in per_task])))
            say(f"seed {seed}: {arm} regret {found[arm]['regret'][-1]:.5f}")
        low, best = found["vanilla"]["regret"][-1], found["oracle"]["regret"][-1]
        for arm in LOSSES:
            recovered[arm].append((low - found[arm]["regret"][-1]) / (low - best))
    table = {
        arm: {
            **{name: mean_sd(column) for name, column in columns.items()},
            "recovered": mean_sd(recovered[arm]) if arm in recovered else "1",
        }
        for arm, columns in found.items()
    }
    shown = {arm: table[arm]["recovered"] for arm in LOSSES}  # worlds differ more than arms
    bars(options.out / "delay.png", shown, "recovered of (vanilla - oracle)")
    best = max(LOSSES, key=lambda arm: table[arm]["recovered"]["mean"])
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
            f"{chosen['recovered']['sd']:.2g} (goal: at least 0.6), PCOC "
            f"{chosen['pcoc']['mean']:.3f} (goal: within 3 %)",
        ],
    }


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

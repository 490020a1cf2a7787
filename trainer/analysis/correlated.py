"""Feature correlation: what a slot says about each label, measured on samples, against how strongly
the model has learnt it. Good encoders reproduce the measured pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from embedding_store.reading import StoreReader
from settings.config import Config
from trainer.analysis.measures import mutual_information, spearman
from trainer.analysis.tables import final_samples, strengths
from trainer.batch import FINAL, build_batch
from trainer.slots import SIDES, plan_slots, table_of

SAMPLES = 50_000


def correlated(reader: StoreReader, config: Config, samples: Path) -> dict[str, Any]:
    """{"samples", "slots": {slot: {"strength", "bits": {task: float}}}, "spearman": {task: float}}
    over the first SAMPLES final samples of the file. A bag counts by its newest value."""
    plan = plan_slots(config)
    found = final_samples(samples, SAMPLES)
    learnt = strengths(reader)
    slots: dict[str, dict[str, Any]] = {}
    batch = build_batch(found, plan) if found else None
    for side in SIDES if batch is not None else ():
        assert batch is not None
        part = batch.parts[side]
        ends = np.cumsum(part.lengths)
        for s, slot in enumerate(part.plan.slots):
            bags = slice(s * part.rows, (s + 1) * part.rows)
            codes = np.zeros(part.rows, np.uint64)  # 0 = missing or empty
            filled = part.lengths[bags] > 0
            if slot.type == "vector" or not filled.any():
                continue
            codes[filled] = part.keys[ends[bags][filled] - 1]
            slots[slot.name] = {
                "strength": learnt.get(table_of(slot), 0.0),
                "bits": {
                    task: mutual_information(
                        codes[batch.mask[:, t] > 0],
                        batch.labels[batch.mask[:, t] > 0, t] > 0,
                    )
                    for t, task in enumerate(plan.tasks)
                },
            }
    assert batch is None or (batch.state == FINAL).all()
    strength = np.asarray([slot["strength"] for slot in slots.values()])
    return {
        "samples": len(found),
        "slots": slots,
        "spearman": {
            task: spearman(strength, np.asarray([slot["bits"][task] for slot in slots.values()]))
            for task in plan.tasks
        },
    }

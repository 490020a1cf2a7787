"""Interest entanglement: can the model keep what two tasks want of a user and an item apart?

A task's view of a pair is the distance of the user's and the item's rows in the sets that speak for
the task: its own set where it has one (STEM), else the shared set, the same for every task. Against
single-task stores of the same stream: 1 - Spearman of the pairs' distances, 0 = the multi-task
model orders pairs as the task alone would; and what became of pairs that the tasks contradict each
other about. Without them: how far the model's own views of two tasks differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np

from embedding_store.reading import StoreReader
from trainer.analysis.measures import F64, contradictory, distances, entanglement, spearman
from trainer.analysis.tables import learnt_sets, rows_of_slot
from trainer.parts.sets import SHARED

PAIRS = 20_000
ROWS = 2_000
_SEED = 0


def entangled(
    reader: StoreReader, singles: Mapping[str, StoreReader], tasks: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(report, points for the plot). `singles`: task -> the store of its single-task model."""
    users, items = (rows_of_slot(reader, slot, ROWS)["key"] for slot in ("user_id", "item_id"))
    for single in singles.values():
        users = users[single.rows(users)[1]]
        items = items[single.rows(items)[1]]
    if not len(users) or not len(items):
        return {"pairs": 0, "views": {}, "entanglement": {}, "contradictory": {}}, {}
    draw = np.random.default_rng(_SEED)
    pairs = (draw.choice(users, PAIRS), draw.choice(items, PAIRS))
    views = {task: _distances(reader, _set_of(reader, task), pairs) for task in tasks}
    alone = {task: _distances(s, _set_of(s, task), pairs) for task, s in singles.items()}
    report: dict[str, Any] = {
        "pairs": PAIRS,
        "sets": {task: _set_of(reader, task) for task in tasks},
        "views": {
            f"{a}|{b}": 1.0 - spearman(views[a], views[b])
            for n, a in enumerate(tasks)
            for b in tasks[n + 1 :]
        },
        "entanglement": {task: entanglement(views[task], alone[task]) for task in alone},
        "contradictory": {},
    }
    points: dict[str, Any] = {}
    for (a, near), (b, far) in permutations(alone.items(), 2):
        chosen = contradictory(near, far)
        apart = views[b][chosen] - views[a][chosen]
        report["contradictory"][f"near in {a}, far in {b}"] = {
            "pairs": len(chosen),
            "kept_apart": float((apart > 0).mean()) if len(chosen) else None,
        }
        points[f"{a}|{b}"] = (views[a][chosen], views[b][chosen])
    if not points and len(tasks) > 1:
        points[f"{tasks[0]}|{tasks[1]}"] = (views[tasks[0]][:2000], views[tasks[1]][:2000])
    return report, points


def _set_of(reader: StoreReader, task: str) -> str:
    sets = learnt_sets(reader)
    for name in (f"task:{task}", SHARED):
        if name in sets:
            return name
    return sets[0]


def _distances(reader: StoreReader, name: str, pairs: tuple[Any, Any]) -> F64:
    sides = []
    for keys in pairs:
        distinct, inverse = np.unique(keys, return_inverse=True)
        records, _ = reader.rows(distinct)
        sides.append(reader.vectors(name, records)[inverse])
    return distances(*sides)

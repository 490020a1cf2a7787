"""A store's rows and dense weights, as the analysis tools look at them: by slot and set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load

from embedding_store.errors import StoreUnreadable
from embedding_store.reading import StoreReader
from topics.sample import Sample, decode_sample
from trainer.analysis.measures import F64
from trainer.durable import SPACE, restore_moments
from trainer.moments import Moments
from trainer.parts.rates import RATES
from trainer.slots import SIDES, Plan, Side

F32 = npt.NDArray[np.float32]


def blocks(reader: StoreReader) -> Iterator[tuple[str, npt.NDArray[np.void]]]:
    """(slot, its rows of one block)."""
    for records in reader.records():
        numbers = records["slot"]
        for number in np.unique(numbers).tolist():
            yield reader.layout.slot_name(number), records[numbers == number]


def learnt_sets(reader: StoreReader) -> list[str]:
    """The sets that gradients move: running rates are counts."""
    return [name for name in reader.layout.sets if name != RATES]


def grams(reader: StoreReader) -> tuple[dict[tuple[str, str], F64], dict[str, int]]:
    """({(slot, set): E^T E [D, D]}, {slot: rows}). Streams: memory does not grow with rows."""
    found: dict[tuple[str, str], F64] = {}
    rows: dict[str, int] = {}
    for slot, records in blocks(reader):
        rows[slot] = rows.get(slot, 0) + len(records)
        for name in learnt_sets(reader):
            vectors = reader.vectors(name, records).astype(np.float64)
            if vectors.any():
                gram = vectors.T @ vectors
                key = (slot, name)
                found[key] = found[key] + gram if key in found else gram
    return found, rows


def strengths(reader: StoreReader) -> dict[str, float]:
    """Slot -> root mean square length of its rows' vectors, over all sets, by occurrences."""
    total: dict[str, float] = {}
    weight: dict[str, float] = {}
    for slot, records in blocks(reader):
        counts = np.maximum(records["count"].astype(np.float64), 1.0)
        squares = sum(
            (reader.vectors(name, records).astype(np.float64) ** 2).sum(1)
            for name in learnt_sets(reader)
        )
        total[slot] = total.get(slot, 0.0) + float((counts * squares).sum())
        weight[slot] = weight.get(slot, 0.0) + float(counts.sum())
    return {slot: float(np.sqrt(total[slot] / weight[slot])) for slot in total}


def dense_weights(reader: StoreReader) -> dict[str, torch.Tensor]:
    """The model's parameters by name. Raises StoreUnreadable for a store of no trainer."""
    for space, key, value in reader.state():
        if space == SPACE and key == b"dense":
            tensors = load(value)
            return {
                name.removeprefix("weight."): tensor
                for name, tensor in tensors.items()
                if name.startswith("weight.")
            }
    raise StoreUnreadable(f"no model in this store: path=`{reader.path}`")


def stored_moments(reader: StoreReader, plan: Plan) -> dict[Side, Moments]:
    """Running moments of the numeric slots, as the last commit has them."""
    raw = next(v for space, key, v in reader.state() if space == SPACE and key == b"moments")
    moments = {side: Moments(len(plan.sides[side].of_type("numeric"))) for side in SIDES}
    restore_moments(moments, raw)
    return moments


def final_samples(path: Path, limit: int) -> list[Sample]:
    """The first final samples of `samples.jsonl`."""
    with path.open("rb") as file:
        finals = (s for s in map(decode_sample, file) if s.state == "final")
        return list(islice(finals, limit))


def rows_of_slot(reader: StoreReader, slot: str, limit: int) -> npt.NDArray[Any]:
    """Up to `limit` rows of a slot, those learnt from most often."""
    found = [records for name, records in blocks(reader) if name == slot]
    if not found:
        return np.empty(0, reader.form.dtype)
    rows = np.concatenate(found)
    order = np.argsort(-rows["count"].astype(np.int64), kind="stable")
    chosen: npt.NDArray[Any] = rows[order[:limit]]
    return chosen

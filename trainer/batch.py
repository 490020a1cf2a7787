"""Samples -> arrays. Missing is missing, not zero: it has a flag of its own everywhere.

One `SidePart` per tower holds ragged keys slot-major: bag s * B + b is slot s of sample b. A value
of the wrong type counts as missing and is counted; so is a slot that the config does not know.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding_store.keys import row_keys
from topics.sample import Sample
from trainer.slots import ITEM_TABLE, SIDES, Plan, Side, SidePlan, Slot

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

EARLY, CORRECTION, FINAL = 0, 1, 2
STATES = {"early": EARLY, "correction": CORRECTION, "final": FINAL}
RECENCY_SCALE_MS = 3_600_000.0
"""An entry of a sequence this old weighs half of one that is new."""
_BUCKETS_PER_OCTAVE = 2
_NO_KEYS: U64 = np.empty(0, np.uint64)


@dataclass(slots=True)
class SidePart:
    """One side's features of B rows; S slots, Sn numeric slots, N keys in all."""

    plan: SidePlan
    rows: int
    keys: U64
    """[N] row keys, slot-major, ragged."""
    lengths: I64
    """[S * B] keys per bag."""
    weights: F32
    """[N]; sums to 1 in each bag that is not empty."""
    missing: F32
    """[B, S]; 1 where the slot has no usable value."""
    numeric: F32
    """[B, Sn] sign(x) * log1p(|x|), NaN where missing."""
    vectors: F32
    """[B, V] the vector slots side by side, each scaled to length <= 1; zeros where missing."""


@dataclass(slots=True)
class Batch:
    """B samples as arrays; T tasks in config order."""

    samples: Sequence[Sample]
    parts: dict[Side, SidePart]
    labels: F32
    """[B, T]; 0 where the mask is 0."""
    mask: F32
    """[B, T]; 1 where the sample says something about the task."""
    state: I64
    """[B] EARLY | CORRECTION | FINAL."""
    domain: I64
    """[B] 0 = not in the config, else 1 + position."""
    event_ms: I64
    """[B] the impression's time."""
    log_keep_rate: F32
    """[B]; taken off the logit in training only (log-odds correction of sampled negatives)."""
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(slot, reason) -> values that were not usable; unknown slots under the name `unknown`."""


def build_batch(samples: Sequence[Sample], plan: Plan) -> Batch:
    """Arrays of `samples`, in their order. Pure: equal samples give equal arrays."""
    rejected: Counter[tuple[str, str]] = Counter()
    known = plan.known
    for sample in samples:
        if not sample.features.keys() <= known:
            rejected["unknown", "not in the config"] += len(sample.features.keys() - known)
    labels, mask = read_labels(samples, plan)
    keep = np.asarray([s.keep_rate for s in samples], np.float64)
    return Batch(
        samples=samples,
        parts={side: _encode_side(samples, plan.sides[side], rejected) for side in SIDES},
        labels=labels,
        mask=mask,
        state=np.asarray([STATES[s.state] for s in samples], np.int64),
        domain=read_domains(samples, plan),
        event_ms=np.asarray([s.event_ms for s in samples], np.int64),
        log_keep_rate=np.log(np.clip(keep, 1e-6, 1.0)).astype(np.float32),
        rejected=rejected,
    )


def read_labels(samples: Sequence[Sample], plan: Plan) -> tuple[F32, F32]:
    """(labels, mask), each [B, T]; a kind that a sample does not name is masked, not negative."""
    labels = np.zeros((len(samples), len(plan.tasks)), np.float32)
    mask = np.zeros_like(labels)
    for t, task in enumerate(plan.tasks):
        for b, sample in enumerate(samples):
            label = sample.labels.get(task)
            if label is not None:
                labels[b, t] = label
                mask[b, t] = 1.0
    return labels, mask


def read_domains(samples: Sequence[Sample], plan: Plan) -> I64:
    """[B] 0 for a domain that is not in the config, else 1 + its position."""
    numbers = {name: 1 + i for i, name in enumerate(plan.domains)}
    return np.asarray([numbers.get(s.domain, 0) for s in samples], np.int64)


def _encode_side(
    samples: Sequence[Sample], plan: SidePlan, rejected: Counter[tuple[str, str]]
) -> SidePart:
    rows, slots = len(samples), len(plan.slots)
    lengths = np.zeros((slots, rows), np.int64)
    missing = np.zeros((rows, slots), np.float32)
    keys: list[U64] = []
    weights: list[F32] = []
    numeric: list[F32] = []
    vectors: list[F32] = []
    for s, slot in enumerate(plan.slots):
        values = _values(samples, slot)
        if slot.type == "vector":
            dense = _read_vectors(values, slot, rejected)
            missing[:, s] = np.isnan(dense[:, 0])
            vectors.append(np.nan_to_num(dense, nan=0.0))
            continue
        if slot.type == "numeric":
            column = _read_numbers(values, slot, rejected)
            numeric.append(column)
            missing[:, s] = np.isnan(column)
            lengths[s] = missing[:, s] == 0
            slot_keys, slot_weights = _bucket_keys(slot, column)
        else:
            slot_keys, slot_weights = _read_codes(samples, values, slot, lengths[s], rejected)
            missing[:, s] = lengths[s] < 0
            lengths[s] = np.maximum(lengths[s], 0)
        keys.append(slot_keys)
        weights.append(slot_weights)
    return SidePart(
        plan=plan,
        rows=rows,
        keys=np.concatenate(keys) if keys else _NO_KEYS,
        lengths=lengths.reshape(slots * rows),  # [S, B] -> [S * B]
        weights=np.concatenate(weights) if weights else np.empty(0, np.float32),
        missing=missing,
        numeric=np.stack(numeric, 1) if numeric else np.empty((rows, 0), np.float32),
        vectors=np.concatenate(vectors, 1) if vectors else np.empty((rows, 0), np.float32),
    )


def _values(samples: Sequence[Sample], slot: Slot) -> list[Any]:
    """The slot's value of every sample; None = missing."""
    if slot.name == "user_id":
        return [s.user_id for s in samples]
    if slot.name == "item_id":
        return [s.item_id for s in samples]
    if slot.name == "domain":
        return [s.domain for s in samples]
    return [s.features.get(slot.name) for s in samples]


def _read_codes(
    samples: Sequence[Sample],
    values: list[Any],
    slot: Slot,
    lengths: I64,
    rejected: Counter[tuple[str, str]],
) -> tuple[U64, F32]:
    """Keys and weights of a slot of strings; writes the keys per sample into `lengths` [B].

    An empty list has 0 keys, which is not the same as missing: -1.
    """
    words: list[str] = []
    weights: list[float] = []
    lengths[:] = -1
    for b, value in enumerate(values):
        if value is None:
            continue
        if slot.type == "categorical":
            if type(value) is not str:
                rejected[slot.name, "expected a string"] += 1
                continue
            words.append(value)
            weights.append(1.0)
            lengths[b] = 1
        elif slot.type == "multi":
            if type(value) is not list or not all(type(v) is str for v in value):
                rejected[slot.name, "expected a list of strings"] += 1
                continue
            newest = value[-slot.length_max :]
            words += newest
            weights += [1.0 / max(1, len(newest))] * len(newest)
            lengths[b] = len(newest)
        else:
            entries = _read_sequence(value, slot, samples[b].event_ms, rejected)
            if entries is None:
                continue
            total = sum(weight for _, weight in entries)
            words += [item for item, _ in entries]
            weights += [weight / total for _, weight in entries]
            lengths[b] = len(entries)
    table = ITEM_TABLE if slot.type == "sequence" else slot.name
    keys = row_keys(table, words) if words else _NO_KEYS
    return keys, np.asarray(weights, np.float32)


def _read_sequence(
    value: Any, slot: Slot, event_ms: int, rejected: Counter[tuple[str, str]]
) -> list[tuple[str, float]] | None:
    """(item id, recency weight) of the newest entries, oldest first; None for no list at all.

    Entries later than the impression are dropped and counted: they were not known then.
    """
    entries: list[tuple[int, str]] = []
    if type(value) is not list:
        rejected[slot.name, "expected a list of entries"] += 1
        return None
    for entry in value:
        item, at = (entry.get("item_id"), entry.get("event_ms")) if type(entry) is dict else (0, 0)
        if type(item) is not str or type(at) is not int:
            rejected[slot.name, "expected entries with item_id and event_ms"] += 1
        elif at > event_ms:
            rejected[slot.name, "later than the impression"] += 1
        else:
            entries.append((at, item))
    entries.sort(key=lambda e: e[0])
    return [
        (item, 1.0 / (1.0 + math.log2(1.0 + (event_ms - at) / RECENCY_SCALE_MS)))
        for at, item in entries[-slot.length_max :]
    ]


def _read_numbers(values: list[Any], slot: Slot, rejected: Counter[tuple[str, str]]) -> F32:
    """[B] signed log of each number, NaN where missing."""
    column = np.full(len(values), np.nan, np.float64)
    for b, value in enumerate(values):
        if value is None:
            continue
        if type(value) is float or (type(value) is int and -(2**63) <= value < 2**63):
            column[b] = value
        else:
            rejected[slot.name, "expected a number"] += 1
    column[~np.isfinite(column)] = np.nan
    logs: F32 = (np.sign(column) * np.log1p(np.abs(column))).astype(np.float32)
    return logs


def _bucket_keys(slot: Slot, column: F32) -> tuple[U64, F32]:
    """One key per number: its bucket on a log scale, half an octave wide."""
    present = column[~np.isnan(column)]
    buckets = np.floor(present / math.log(2.0) * _BUCKETS_PER_OCTAVE).astype(np.int64)
    names, inverse = np.unique(buckets, return_inverse=True)
    if not names.size:
        return _NO_KEYS, np.empty(0, np.float32)
    keys = row_keys(slot.name, [f"bucket:{n}" for n in names.tolist()])
    return keys[inverse], np.ones(present.size, np.float32)


def _read_vectors(values: list[Any], slot: Slot, rejected: Counter[tuple[str, str]]) -> F32:
    """[B, dim] vectors scaled to length <= 1, rows of NaN where missing.

    Scaled, since one vector of huge numbers would otherwise throw every dense weight away.
    """
    dense = np.full((len(values), slot.dim), np.nan, np.float64)
    for b, value in enumerate(values):
        if value is None:
            continue
        if type(value) is not list or not set(map(type, value)) <= {int, float}:
            rejected[slot.name, "expected a list of numbers"] += 1
        elif len(value) != slot.dim:
            rejected[slot.name, f"expected {slot.dim} numbers"] += 1
        else:
            try:
                dense[b] = value
            except OverflowError:
                rejected[slot.name, "expected a list of numbers"] += 1
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt((dense * dense).sum(1))
        dense /= np.maximum(norms, 1.0)[:, None]
    dense[~np.isfinite(norms)] = np.nan
    return dense.astype(np.float32)

"""A slot's values, as producers sent them -> keys, weights, numbers. What cannot be used counts as
missing, and is counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding_store.keys import row_keys
from topics.sample import Sample
from trainer.codes import SIMILARITY_BITS, mnse_keys, similarity_bucket
from trainer.slots import ITEM_TABLE, Slot

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

RECENCY_SCALE_MS = 3_600_000.0
"""An entry of a sequence this old weighs half of one that is new."""
_BUCKETS_PER_OCTAVE = 2
_OF_THE_SAMPLE = ("user_id", "item_id", "domain")
"""Slots that are no feature."""
NO_KEYS: U64 = np.empty(0, np.uint64)


def columns(samples: Sequence[Sample], slots: Sequence[Slot]) -> list[Sequence[Any]]:
    """Each slot's value in every sample, [slots][B]; None = missing.

    Sample by sample: what lies together in memory is read together.
    """
    names = [slot.name for slot in slots if slot.name not in _OF_THE_SAMPLE]
    values_of = _reader(names)
    of_features = zip(*[values_of(sample.features) for sample in samples], strict=True)
    return [
        [getattr(sample, slot.name) for sample in samples]
        if slot.name in _OF_THE_SAMPLE
        else next(of_features, ())
        for slot in slots
    ]


def _reader(names: Sequence[str]) -> Callable[[dict[str, Any]], Sequence[Any]]:
    """Of the features of one sample, the value under each name; None = missing."""
    if len(names) < 2:  # of one name, an itemgetter returns no tuple
        return lambda features: [features.get(name) for name in names]
    all_of = itemgetter(*names)  # the fastest way, and as a rule none is missing

    def values_of(features: dict[str, Any]) -> Sequence[Any]:
        try:
            found: Sequence[Any] = all_of(features)
        except KeyError:
            return [features.get(name) for name in names]
        return found

    return values_of


def read_codes(
    samples: Sequence[Sample],
    values: Sequence[Any],
    slot: Slot,
    lengths: I64,
    rejected: Counter[tuple[str, str]],
) -> tuple[U64, F32, F32]:
    """Keys, weights and ages of a slot of strings; writes keys per sample into `lengths` [B].

    An empty list has 0 keys, which is not the same as missing: -1.
    """
    if slot.type == "categorical" and set(map(type, values)) == {str}:  # as a rule
        lengths[:] = 1
        ones, zeros = np.ones(len(values), np.float32), np.zeros(len(values), np.float32)
        return row_keys(slot.name, values), ones, zeros
    words: list[str] = []
    weights: list[float] = []
    ages: list[float] = []
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
            total = sum(weight for _, weight, _ in entries)
            words += [item for item, _, _ in entries]
            weights += [weight / total for _, weight, _ in entries]
            ages += [age for _, _, age in entries]
            lengths[b] = len(entries)
    table = ITEM_TABLE if slot.type == "sequence" else slot.name
    keys = row_keys(table, words) if words else NO_KEYS
    if slot.type != "sequence":
        return keys, np.asarray(weights, np.float32), np.zeros(len(words), np.float32)
    return keys, np.asarray(weights, np.float32), np.asarray(ages, np.float32)


def _read_sequence(
    value: Any, slot: Slot, event_ms: int, rejected: Counter[tuple[str, str]]
) -> list[tuple[str, float, float]] | None:
    """(item id, recency weight, log2(1 + age in seconds)) of the newest entries, oldest first; None
    for no list at all.

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
        (
            item,
            1.0 / (1.0 + math.log2(1.0 + (event_ms - at) / RECENCY_SCALE_MS)),
            math.log2(1.0 + (event_ms - at) / 1000.0),
        )
        for at, item in entries[-slot.length_max :]
    ]


def read_numbers(values: Sequence[Any], slot: Slot, rejected: Counter[tuple[str, str]]) -> F64:
    """[B] each number, NaN where missing."""
    column = np.full(len(values), np.nan, np.float64)
    for b, value in enumerate(values):
        if value is None:
            continue
        if type(value) is float or (type(value) is int and -(2**63) <= value < 2**63):
            column[b] = value
        else:
            rejected[slot.name, "expected a number"] += 1
    column[~np.isfinite(column)] = np.nan
    return column


def signed_logs(column: F64) -> F32:
    """[B] sign(x) * log1p(|x|), NaN where missing."""
    return np.asarray(np.sign(column) * np.log1p(np.abs(column)), np.float32)


def read_similarities(
    samples: Sequence[Sample], slot: Slot, rejected: Counter[tuple[str, str]]
) -> F64:
    """[B] cosine of the two vectors that the slot compares, NaN where one is missing or zero."""
    column = np.full(len(samples), np.nan, np.float64)
    for b, sample in enumerate(samples):
        pair = [sample.features.get(name) for name in slot.of]
        if None in pair:
            continue
        try:
            one, other = (np.asarray(vector, np.float64) for vector in pair)
            if one.ndim != 1 or one.shape != other.shape or not one.size:
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            rejected[slot.name, "expected two lists of as many numbers"] += 1
            continue
        with np.errstate(all="ignore"):
            column[b] = (one / np.linalg.norm(one)) @ (other / np.linalg.norm(other))
    column[~np.isfinite(column)] = np.nan
    return column


def number_keys(slot: Slot, column: F64) -> tuple[U64, F32, int]:
    """(keys, weights, keys per number) of the numbers that are there, by the slot's encoder."""
    present = column[~np.isnan(column)]
    if slot.type == "similarity":
        buckets = similarity_bucket(present)
        keys, weights = mnse_keys(slot.name, buckets, slot.bases, SIMILARITY_BITS)
    elif slot.encoder == "mnse":
        keys, weights = mnse_keys(slot.name, present * slot.scale, slot.bases, slot.bits)
    else:
        keys, weights = bucket_keys(slot, signed_logs(present))
    return keys, weights, len(keys) // max(1, present.size)


def bucket_keys(slot: Slot, present: F32) -> tuple[U64, F32]:
    """One key per number, given as signed log: its bucket, half an octave wide."""
    buckets = np.floor(present / math.log(2.0) * _BUCKETS_PER_OCTAVE).astype(np.int64)
    names, inverse = np.unique(buckets, return_inverse=True)
    if not names.size:
        return NO_KEYS, np.empty(0, np.float32)
    keys = row_keys(slot.name, [f"bucket:{n}" for n in names.tolist()])
    return keys[inverse], np.ones(present.size, np.float32)


def read_vectors(values: Sequence[Any], slot: Slot, rejected: Counter[tuple[str, str]]) -> F32:
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

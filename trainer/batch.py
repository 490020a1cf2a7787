"""Samples -> arrays. Missing is missing, not zero: it has a flag of its own everywhere.

One `SidePart` per tower holds ragged keys slot-major: bag s * B + b is slot s of sample b. A value
of the wrong type counts as missing and is counted; so is a slot that the config does not know.
A batch is arrays and byte strings throughout, so that another process can make it (`frames`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from topics.sample import Sample
from trainer.features import (
    F32,
    I64,
    NO_KEYS,
    U64,
    columns,
    number_keys,
    read_codes,
    read_numbers,
    read_similarities,
    read_vectors,
    signed_logs,
)
from trainer.slots import SIDES, Plan, Side, SidePlan

__all__ = ["F32", "I64", "U64", "Batch", "SidePart", "build_batch"]

EARLY, CORRECTION, FINAL = 0, 1, 2
STATES = {"early": EARLY, "correction": CORRECTION, "final": FINAL}
STATE_NAMES = tuple(STATES)
NO_DELAY = -1


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
    ages: F32
    """[N] log2(1 + seconds) from a sequence's entry to the impression; 0 for other slots, and in
    rows that were packed."""

    def take(self, rows: I64) -> SidePart:
        """The part of `rows` [K], ascending."""
        slots = len(self.plan.slots)
        bags = self.lengths.reshape(slots, self.rows)  # [S * B] -> [S, B]
        wanted = np.zeros(self.rows, bool)
        wanted[rows] = True
        kept = np.repeat(np.tile(wanted, slots), self.lengths)  # [N]
        return SidePart(
            plan=self.plan,
            rows=len(rows),
            keys=self.keys[kept],
            lengths=np.ascontiguousarray(bags[:, rows]).reshape(slots * len(rows)),
            weights=self.weights[kept],
            missing=self.missing[rows],
            numeric=self.numeric[rows],
            vectors=self.vectors[rows],
            ages=self.ages[kept],
        )


@dataclass(slots=True)
class Batch:
    """B samples as arrays; T tasks in config order."""

    impressions: list[bytes]
    """[B] ids in UTF-8; likewise users and items."""
    users: list[bytes]
    items: list[bytes]
    parts: dict[Side, SidePart]
    labels: F32
    """[B, T]; 0 where the mask is 0."""
    mask: F32
    """[B, T]; 1 where the sample says something about the task."""
    delays: I64
    """[B, T] ms from the impression to the conversion, NO_DELAY where there is none."""
    state: I64
    """[B] EARLY | CORRECTION | FINAL."""
    domain: I64
    """[B] 0 = not in the config, else 1 + position."""
    event_ms: I64
    """[B] the impression's time."""
    newest_ms: I64
    """[B] event time of the newest event in the sample's information."""
    produced_ms: I64
    """[B] produce time of it."""
    elapsed_ms: I64
    """[B] event time from the impression to what the sample knows."""
    position: I64
    """[B] where it was shown, from 0; -1 where unknown."""
    log_keep_rate: F32
    """[B]; taken off the logit in training only (log-odds correction of sampled negatives)."""
    kept: npt.NDArray[np.bool_]
    """[B] false where the impression's negatives were sampled out: such rows name positives only,
    and what estimates a rate by counting leaves them out."""
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(slot, reason) -> values that were not usable; unknown slots under the name `unknown`."""

    def __len__(self) -> int:
        return len(self.impressions)

    def take(self, rows: I64) -> Batch:
        """The samples in `rows` [K], ascending; what was rejected stays counted as a whole."""
        if len(rows) == len(self):
            return self
        chosen: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.ndarray):
                chosen[each.name] = value[rows]
            elif isinstance(value, list):
                chosen[each.name] = [value[b] for b in rows.tolist()]
        parts = {side: part.take(rows) for side, part in self.parts.items()}
        return dataclasses.replace(self, parts=parts, **chosen)


def build_batch(samples: Sequence[Sample], plan: Plan) -> Batch:
    """Arrays of `samples`, in their order. Pure: equal samples give equal arrays."""
    rejected: Counter[tuple[str, str]] = Counter()
    known = plan.known
    for sample in samples:
        if not sample.features.keys() <= known:
            rejected["unknown", "not in the config"] += len(sample.features.keys() - known)
    labels, mask, delays = _read_labels(samples, plan)
    keep = np.asarray([s.keep_rate for s in samples], np.float64)
    numbers = {name: 1 + i for i, name in enumerate(plan.domains)}
    return Batch(
        impressions=_utf8([s.impression_id for s in samples]),
        users=_utf8([s.user_id for s in samples]),
        items=_utf8([s.item_id for s in samples]),
        parts={side: _encode_side(samples, plan.sides[side], rejected) for side in SIDES},
        labels=labels,
        mask=mask,
        delays=delays,
        state=_column([STATES[s.state] for s in samples]),
        domain=_column([numbers.get(s.domain, 0) for s in samples]),
        event_ms=_column([s.event_ms for s in samples]),
        newest_ms=_column([newest_event_ms(s) for s in samples]),
        produced_ms=_column([s.produced_ms for s in samples]),
        elapsed_ms=_column([s.elapsed_ms for s in samples]),
        position=_column([_position(s.position) for s in samples]),
        log_keep_rate=np.log(np.clip(keep, 1e-6, 1.0)).astype(np.float32),
        kept=np.asarray([s.kept for s in samples], bool),
        rejected=rejected,
    )


def newest_event_ms(sample: Sample) -> int:
    """Event time of the newest event in the sample's information."""
    if not sample.delays_ms:
        return sample.event_ms
    return sample.event_ms + max(sample.delays_ms.values())


def _position(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else -1


def _column(values_of_rows: list[int]) -> I64:
    return np.asarray(values_of_rows, np.int64)


def _utf8(ids: list[str]) -> list[bytes]:
    # JSON's "\ud800" is legal in a str and has no strict UTF-8 form
    return [id_.encode("utf-8", "surrogatepass") for id_ in ids]


def _read_labels(samples: Sequence[Sample], plan: Plan) -> tuple[F32, F32, I64]:
    """(labels, mask, delays) [B, T]; a kind that a sample does not name is masked, not negative."""
    labels = np.zeros((len(samples), len(plan.tasks)), np.float32)
    mask = np.zeros_like(labels)
    delays = np.full(labels.shape, NO_DELAY, np.int64)
    numbers = {task: t for t, task in enumerate(plan.tasks)}
    for b, sample in enumerate(samples):
        for task, label in sample.labels.items():
            t = numbers.get(task)
            if t is None:
                continue
            mask[b, t] = 1.0
            if label:
                labels[b, t] = label
                delays[b, t] = sample.delays_ms.get(task, NO_DELAY)
    return labels, mask, delays


def _encode_side(
    samples: Sequence[Sample], plan: SidePlan, rejected: Counter[tuple[str, str]]
) -> SidePart:
    rows, slots = len(samples), len(plan.slots)
    lengths = np.zeros((slots, rows), np.int64)
    missing = np.zeros((rows, slots), np.float32)
    keys: list[U64] = []
    weights: list[F32] = []
    ages: list[F32] = []
    numeric: list[F32] = []
    vectors: list[F32] = []
    for s, (slot, raw) in enumerate(zip(plan.slots, columns(samples, plan.slots), strict=True)):
        if slot.type == "vector":
            dense = read_vectors(raw, slot, rejected)
            missing[:, s] = np.isnan(dense[:, 0])
            vectors.append(np.nan_to_num(dense, nan=0.0))
            continue
        if slot.type in ("numeric", "similarity"):
            if slot.type == "numeric":
                column = read_numbers(raw, slot, rejected)
                numeric.append(signed_logs(column))
            else:
                column = read_similarities(samples, slot, rejected)
            missing[:, s] = np.isnan(column)
            slot_keys, slot_weights, each = number_keys(slot, column)
            lengths[s] = each * (missing[:, s] == 0)
            slot_ages = np.zeros(len(slot_keys), np.float32)
        else:
            slot_keys, slot_weights, slot_ages = read_codes(
                samples, raw, slot, lengths[s], rejected
            )
            missing[:, s] = lengths[s] < 0
            lengths[s] = np.maximum(lengths[s], 0)
        keys.append(slot_keys)
        weights.append(slot_weights)
        ages.append(slot_ages)
    return SidePart(
        plan=plan,
        rows=rows,
        keys=np.concatenate(keys) if keys else NO_KEYS,
        lengths=lengths.reshape(slots * rows),  # [S, B] -> [S * B]
        weights=np.concatenate(weights) if weights else np.empty(0, np.float32),
        missing=missing,
        numeric=np.stack(numeric, 1) if numeric else np.empty((rows, 0), np.float32),
        vectors=np.concatenate(vectors, 1) if vectors else np.empty((rows, 0), np.float32),
        ages=np.concatenate(ages) if ages else np.empty(0, np.float32),
    )

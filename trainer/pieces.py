"""Portions of neighbouring records put together into one, as if they had been read at once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from trainer.batch import Batch, SidePart
from trainer.portion import Portion
from trainer.slots import SIDES

_OF_KEYS = ("keys", "weights", "ages")
"""[N] arrays of a `SidePart`, slot-major."""
_OF_ROWS = ("missing", "numeric", "vectors")
"""[B, ...] arrays of a `SidePart`."""


def join_portions(pieces: Sequence[Portion]) -> Portion:
    """One portion of `pieces`, which follow each other in the log; at least one."""
    if len(pieces) == 1:
        return pieces[0]
    offsets: dict[str, dict[int, int]] = {}
    for piece in pieces:
        for topic, ends in piece.offsets.items():
            offsets.setdefault(topic, {}).update(ends)
    batches = [piece.batch for piece in pieces if piece.batch is not None]
    return Portion(
        join_batches(batches) if batches else None,
        np.concatenate([piece.joined_ms for piece in pieces]),
        offsets,
        max(piece.watermark_ms for piece in pieces),
        list(chain.from_iterable(piece.refused for piece in pieces)),
    )


def join_batches(batches: Sequence[Batch]) -> Batch:
    """The samples of `batches`, in order; all of one plan."""
    if len(batches) == 1:
        return batches[0]
    joined: dict[str, Any] = {}
    for each in dataclasses.fields(Batch):
        values = [getattr(batch, each.name) for batch in batches]
        if isinstance(values[0], np.ndarray):
            joined[each.name] = np.concatenate(values)
        elif isinstance(values[0], list):
            joined[each.name] = list(chain.from_iterable(values))
    joined["parts"] = {side: _join_parts([b.parts[side] for b in batches]) for side in SIDES}
    rejected: Counter[tuple[str, str]] = Counter()
    for batch in batches:
        rejected.update(batch.rejected)
    return Batch(**joined, rejected=rejected)


def _join_parts(parts: Sequence[SidePart]) -> SidePart:
    plan, slots = parts[0].plan, len(parts[0].plan.slots)
    bags = [part.lengths.reshape(slots, part.rows) for part in parts]  # [S * B] -> [S, B]
    ends = [np.cumsum(each.sum(1)).tolist() for each in bags]  # where each slot's keys end
    spans = [list(zip([0, *each], each, strict=False)) for each in ends]
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _OF_ROWS}
    for name in _OF_KEYS:
        arrays = [getattr(part, name) for part in parts]
        of_slots = [
            array[span[s][0] : span[s][1]]
            for s in range(slots)
            for array, span in zip(arrays, spans, strict=True)
        ]
        joined[name] = np.concatenate(of_slots) if of_slots else arrays[0]
    rows = sum(part.rows for part in parts)
    lengths = np.concatenate(bags, axis=1).reshape(slots * rows)
    return SidePart(plan=plan, rows=rows, lengths=lengths, **joined)

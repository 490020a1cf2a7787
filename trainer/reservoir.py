"""Per user, the newest row of each level of two tasks' labels (store space `reservoir`).

CrossDistil ranks within a user, and most batches hold no two rows of one user: each row is paired
with its user's rows here, read before this batch's are put in. A record is msgpack {level: [domain,
packed sides]}, levels 2 y_A + y_B; staged at once, durable with the
store's commit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from embedding_store.store import EmbeddingStore
from trainer.batch import NO_DELAY, Batch, SidePart
from trainer.features import I64
from trainer.packed import PackedRows, unpack_rows
from trainer.slots import SIDES, Plan

SPACE = "reservoir"
NO_STATE = -1
"""A drawn row is no sample: no state of one."""

_Row = tuple[int, list[bytes]]
"""(domain, packed sides in order of SIDES)"""
_Record = dict[int, _Row]
_decoder = msgspec.msgpack.Decoder(_Record)


class Reservoir:
    """See the module. `at`: positions of the two tasks in the plan."""

    def __init__(self, store: EmbeddingStore, plan: Plan, at: list[int]) -> None:
        self._store, self._plan, self._at = store, plan, at

    def draw(self, batch: Batch, taught: npt.NDArray[np.bool_]) -> tuple[Batch, I64]:
        """(batch with R drawn rows after its own B, pairs int64 [P, 2] of own and drawn rows).

        Drawn rows have labels of the two tasks and no mask: the other losses pass them over. Then
        puts the batch's fully labelled rows that are `taught` [B] in.
        """
        labelled = np.flatnonzero(batch.mask[:, self._at].all(1) & taught)
        users = list(dict.fromkeys(batch.users[b] for b in labelled.tolist()))
        raws = self._store.get_many(SPACE, users)
        known = {u: _decoder.decode(r) if r else {} for u, r in zip(users, raws, strict=True)}
        drawn: list[tuple[int, _Row]] = []
        first: dict[bytes, tuple[int, int]] = {}
        for user, record in known.items():
            start = len(batch) + len(drawn)
            drawn += sorted(record.items())
            first[user] = start, len(batch) + len(drawn)
        pairs = [(b, r) for b in labelled.tolist() for r in range(*first[batch.users[b]])]
        self._put(batch, labelled, known)
        if not drawn:
            return batch, np.empty((0, 2), np.int64)
        return self._extended(batch, drawn), np.asarray(pairs, np.int64).reshape(-1, 2)

    def _put(self, batch: Batch, labelled: I64, known: dict[bytes, _Record]) -> None:
        if not len(labelled):
            return
        packed = [PackedRows(batch.parts[side]) for side in SIDES]
        level = (2 * batch.labels[:, self._at[0]] + batch.labels[:, self._at[1]]).astype(np.int64)
        for b in labelled.tolist():
            row = (int(batch.domain[b]), [rows.row(b) for rows in packed])
            known[batch.users[b]][int(level[b])] = row
        for name, record in known.items():
            ordered = dict(sorted(record.items()))
            self._store.put(SPACE, name, msgspec.msgpack.encode(ordered))

    def _extended(self, batch: Batch, drawn: list[tuple[int, _Row]]) -> Batch:
        count = len(drawn)
        changed: dict[str, Any] = {}
        for each in dataclasses.fields(Batch):
            value = getattr(batch, each.name)
            if isinstance(value, np.ndarray):
                changed[each.name] = np.concatenate(
                    [value, np.zeros((count, *value.shape[1:]), value.dtype)]
                )
            elif isinstance(value, list):
                changed[each.name] = value + [b""] * count
        own = len(batch)
        changed["state"][own:] = NO_STATE
        changed["delays"][own:] = NO_DELAY
        changed["domain"][own:] = [row[0] for _, row in drawn]
        for n, (level, _) in enumerate(drawn):
            changed["labels"][own + n, self._at] = level // 2, level % 2
        changed["parts"] = {
            side: joined(
                batch.parts[side],
                unpack_rows([row[1][n] for _, row in drawn], self._plan.sides[side]),
            )
            for n, side in enumerate(SIDES)
        }
        return dataclasses.replace(batch, **changed)


def joined(one: SidePart, other: SidePart) -> SidePart:
    """The rows of `one`, then those of `other`, of the same plan."""
    slots, rows = len(one.plan.slots), one.rows + other.rows
    lengths = np.concatenate(
        [part.lengths.reshape(slots, part.rows) for part in (one, other)], 1
    )  # [S, B + R]
    row_wise = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("missing", "numeric", "vectors")
    }
    slot = [
        np.repeat(np.arange(slots), part.lengths.reshape(slots, part.rows).sum(1))
        for part in (one, other)
    ]
    order = np.argsort(np.concatenate(slot), kind="stable")  # row after row -> slot-major
    key_wise = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])[order]
        for name in ("keys", "weights", "ages")
    }
    return SidePart(
        plan=one.plan, rows=rows, lengths=lengths.reshape(slots * rows), **row_wise, **key_wise
    )

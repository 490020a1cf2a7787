"""A side's rows as bytes, one by one: how an entity's last-seen features are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.batch import SidePart
from trainer.features import F32
from trainer.slots import SidePlan


class PackedRows:
    """A side's B rows, each as bytes: counts u16[S], missing u8[S], numeric f32[Sn],
    vectors f32[V], keys u64[n], weights f32[n]."""

    def __init__(self, part: SidePart) -> None:
        slots = len(part.plan.slots)
        lengths = part.lengths.reshape(slots, part.rows)  # [S * B] -> [S, B]
        order: npt.NDArray[np.int64]
        self._uniform = bool((part.lengths == 1).all())
        if self._uniform:  # slot-major -> row-major by turning the matrix
            order = np.arange(part.keys.size).reshape(slots, part.rows).T.ravel()
        else:
            row_of_key = np.repeat(np.tile(np.arange(part.rows), slots), part.lengths)
            order = np.argsort(row_of_key, kind="stable")
        self._keys: bytes = part.keys[order].astype("<u8").tobytes()
        self._weights: bytes = part.weights[order].astype("<f4").tobytes()
        self._ends = np.cumsum(lengths.sum(0)).tolist()
        self._fixed: bytes = np.concatenate(
            [
                np.ascontiguousarray(lengths.T).astype("<u2").view(np.uint8),
                part.missing.astype(np.uint8),
                np.ascontiguousarray(part.numeric).astype("<f4").view(np.uint8),
                np.ascontiguousarray(part.vectors).astype("<f4").view(np.uint8),
            ],
            axis=1,
        ).tobytes()
        self._width = _fixed_bytes(part.plan)

    def rows(self, wanted: Sequence[int]) -> list[bytes]:
        """Many rows; where every slot has one key, by one copy."""
        if not self._uniform or not self._ends or not self._ends[0]:
            return [self.row(b) for b in wanted]
        keys = self._ends[0]
        parts = [(self._fixed, self._width), (self._keys, 8 * keys), (self._weights, 4 * keys)]
        table = np.concatenate(
            [np.frombuffer(raw, np.uint8).reshape(-1, w)[wanted] for raw, w in parts], 1
        )
        return cut_rows(table)

    def row(self, b: int) -> bytes:
        """Row `b`; `unpack_rows` takes it back."""
        start, end = (self._ends[b - 1] if b else 0), self._ends[b]
        return (
            self._fixed[b * self._width : (b + 1) * self._width]
            + self._keys[8 * start : 8 * end]
            + self._weights[4 * start : 4 * end]
        )


def cut_rows(table: npt.NDArray[np.uint8]) -> list[bytes]:
    """Each row of [N, W] as bytes, W >= 1."""
    void = np.ascontiguousarray(table).view(f"V{table.shape[1]}")  # not S: that strips zero bytes
    rows: list[bytes] = void.ravel().tolist()
    return rows


def _fixed_bytes(plan: SidePlan) -> int:
    return 3 * len(plan.slots) + 4 * len(plan.of_type("numeric")) + 4 * sum(plan.vector_dims)


def unpack_rows(rows: Sequence[bytes], plan: SidePlan) -> SidePart:
    """A side's part of the packed `rows`, in their order."""
    count, slots, width = len(rows), len(plan.slots), _fixed_bytes(plan)
    fixed = np.frombuffer(b"".join(r[:width] for r in rows), np.uint8).reshape(count, width)
    lengths = np.ascontiguousarray(fixed[:, : 2 * slots]).view("<u2").astype(np.int64)  # [E, S]
    at = 3 * slots
    numeric_end = at + 4 * len(plan.of_type("numeric"))
    split = [width + 8 * n for n in lengths.sum(1).tolist()]
    keys = np.frombuffer(b"".join(r[width:end] for r, end in zip(rows, split, strict=True)), "<u8")
    weights = np.frombuffer(b"".join(r[end:] for r, end in zip(rows, split, strict=True)), "<f4")
    slot_of_key = np.repeat(np.tile(np.arange(slots), count), lengths.ravel())
    order = np.argsort(slot_of_key, kind="stable")  # row-major -> slot-major
    return SidePart(
        plan=plan,
        rows=count,
        keys=keys[order].astype(np.uint64),
        lengths=np.ascontiguousarray(lengths.T).reshape(slots * count),
        weights=weights[order].astype(np.float32),
        missing=fixed[:, 2 * slots : at].astype(np.float32),
        numeric=_floats(fixed[:, at:numeric_end]),
        vectors=_floats(fixed[:, numeric_end:]),
        ages=np.zeros(keys.size, np.float32),
    )


def _floats(raw: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> F32:
    """uint8 [E, 4n] -> float32 [E, n]"""
    return np.frombuffer(raw.tobytes(), "<f4").reshape(raw.shape[0], raw.shape[1] // 4)

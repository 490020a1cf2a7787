"""What a source hands to the loop at a time: a batch as arrays, and how far the log is with it.

As bytes (from the process that reads to the one that learns, never on disk): a msgpack head with
name, type and shape of every array and what is no array, padded to 8 bytes; then the arrays one
after another, each padded to 8 bytes. Of an array that holds one number throughout (every slot one
key, of weight 1, none missing) only the number is sent.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from trainer.batch import I64, Batch, SidePart
from trainer.slots import SIDES, Plan

_ALIGNMENT = 8
Array = npt.NDArray[Any]


@dataclass(slots=True)
class Portion:
    """Records next to each other in the log; B of them were samples."""

    batch: Batch | None
    """None if none was."""
    joined_ms: I64
    """[B] wall clock of the join's emission, -1 where unknown; for metrics only."""
    offsets: dict[str, dict[int, int]]
    """Topic (without prefix) -> partition -> offset of the next record."""
    watermark_ms: int
    refused: list[str]
    """Where and why, of each record that was no sample."""


class _Head(msgspec.Struct, array_like=True):
    arrays: list[tuple[str, str, list[int], bytes]]
    """(name, numpy's type string, shape, the one number that it holds or nothing)"""
    offsets: dict[str, dict[int, int]]
    watermark_ms: int
    refused: list[str]
    rejected: list[tuple[str, str, int]]
    rows: int
    """-1 = no batch"""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Head)


def dump_portion(portion: Portion) -> list[bytes | memoryview]:
    """Buffers that, joined, are the bytes drawn above."""
    arrays: dict[str, Array] = {"joined_ms": portion.joined_ms}
    batch = portion.batch
    if batch is not None:
        for each in dataclasses.fields(Batch):
            value = getattr(batch, each.name)
            if isinstance(value, np.ndarray):
                arrays[each.name] = value
            elif isinstance(value, list):
                arrays[f"{each.name}:lengths"] = np.fromiter(map(len, value), np.int64, len(value))
                arrays[each.name] = np.frombuffer(b"".join(value), np.uint8)
        for side, part in batch.parts.items():
            for each in dataclasses.fields(SidePart):
                value = getattr(part, each.name)
                if isinstance(value, np.ndarray):
                    arrays[f"{side}:{each.name}"] = value
    fills = {name: _fill(array) for name, array in arrays.items()}
    head = _Head(
        [(name, a.dtype.str, list(a.shape), fills[name]) for name, a in arrays.items()],
        portion.offsets,
        portion.watermark_ms,
        portion.refused,
        [] if batch is None else [(*key, count) for key, count in batch.rejected.items()],
        -1 if batch is None else len(batch),
    )
    encoded = _encoder.encode(head)
    buffers: list[bytes | memoryview] = [
        len(encoded).to_bytes(8, "little"),
        encoded,
        bytes(-len(encoded) % _ALIGNMENT),
    ]
    for name, array in arrays.items():
        if fills[name]:
            continue
        plain = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffers += [plain.data, bytes(-plain.size % _ALIGNMENT)]
    return buffers


def _fill(array: Array) -> bytes:
    """The number that `array` holds throughout, as bytes; none if it holds several, or nothing."""
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.itemsize}")  # tells 0.0 from -0.0
    return bits[:1].tobytes() if bits.size and bool((bits == bits[0]).all()) else b""


def load_portion(raw: npt.NDArray[np.uint8], plan: Plan) -> Portion:
    """Inverse of `dump_portion`; the arrays share `raw`'s memory."""
    size = int(raw[:8].view(np.int64)[0])
    head = _decoder.decode(raw[8 : 8 + size].data)
    at = 8 + size + -size % _ALIGNMENT
    arrays: dict[str, Array] = {}
    for name, type_, shape, fill in head.arrays:
        dtype = np.dtype(type_)
        if fill:
            arrays[name] = np.full(shape, np.frombuffer(fill, dtype)[0])
            continue
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        arrays[name] = raw[at : at + count].view(dtype).reshape(shape)
        at += count + -count % _ALIGNMENT
    batch = _batch(arrays, head, plan) if head.rows >= 0 else None
    return Portion(batch, arrays["joined_ms"], head.offsets, head.watermark_ms, head.refused)


def _batch(arrays: dict[str, Array], head: _Head, plan: Plan) -> Batch:
    content: dict[str, Any] = {}
    for each in dataclasses.fields(Batch):
        if f"{each.name}:lengths" in arrays:
            content[each.name] = _split(arrays[each.name], arrays[f"{each.name}:lengths"])
        elif each.name in arrays:
            content[each.name] = arrays[each.name]
    parts = {
        side: SidePart(
            plan=plan.sides[side],
            rows=head.rows,
            **{
                each.name: arrays[f"{side}:{each.name}"]
                for each in dataclasses.fields(SidePart)
                if f"{side}:{each.name}" in arrays
            },
        )
        for side in SIDES
    }
    rejected = Counter({(slot, reason): count for slot, reason, count in head.rejected})
    return Batch(**content, parts=parts, rejected=rejected)


def _split(joined: Array, lengths: I64) -> list[bytes]:
    whole, ends = joined.tobytes(), np.cumsum(lengths).tolist()
    return [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

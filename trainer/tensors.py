"""A batch's arrays as tensors on the training device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.batch import F32, I64, Batch, SidePart
from trainer.moments import Moments
from trainer.slots import SIDES, Side


@dataclass(slots=True)
class SequenceTensors:
    """One sequence slot, padded to the batch's longest: L entries."""

    indices: Tensor
    """int64 [B, L] into the gathered rows; 0 where padded."""
    log_weights: Tensor
    """float32 [B, L] log of the recency weight, -inf where padded."""
    ages: Tensor
    """float32 [B, L] log2(1 + age in seconds), 0 where padded."""


@dataclass(slots=True)
class SideTensors:
    """One side of B rows; S slots, N keys, Sn numeric slots, V numbers of vectors."""

    rows: int
    indices: Tensor
    """int64 [N] into the gathered rows, slot-major."""
    offsets: Tensor
    """int64 [S * B] start of each bag."""
    weights: Tensor
    """float32 [N]"""
    missing: Tensor
    """float32 [B, S]"""
    numeric: Tensor
    """float32 [B, Sn] normalised, 0 where missing."""
    vectors: Tensor
    """float32 [B, V]"""
    sequences: list[SequenceTensors]


@dataclass(slots=True)
class BatchTensors:
    """A whole batch as the model takes it."""

    sides: dict[Side, SideTensors]
    domain: Tensor
    """int64 [B]"""


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """A tensor with its own, aligned memory.

    Copied, not shared: numpy aligns to 16 bytes and the matrix kernels' summation order may depend
    on alignment, which would differ from run to run.
    """
    return torch.tensor(array, device=device)


def places_to_device(places: I64, device: torch.device) -> Tensor:
    """Of indices, which nothing sums: on the CPU their memory is shared, not copied."""
    return torch.from_numpy(places).to(device)


def side_tensors(
    part: SidePart, inverse: I64, moments: Moments, device: torch.device
) -> SideTensors:
    """Tensors of one side; `inverse` [N] maps its keys to gathered rows."""
    offsets = np.zeros(part.lengths.size, np.int64)
    np.cumsum(part.lengths[:-1], out=offsets[1:])
    return SideTensors(
        rows=part.rows,
        indices=places_to_device(inverse, device),
        offsets=places_to_device(offsets, device),
        weights=to_device(part.weights, device),
        missing=to_device(part.missing, device),
        numeric=to_device(moments.normalise(part.numeric), device),
        vectors=to_device(part.vectors, device),
        sequences=[
            _sequence(part, s, offsets, inverse, device) for s in part.plan.of_type("sequence")
        ],
    )


def _sequence(
    part: SidePart, slot: int, offsets: I64, inverse: I64, device: torch.device
) -> SequenceTensors:
    lengths = part.lengths[slot * part.rows : (slot + 1) * part.rows]  # [B]
    starts = offsets[slot * part.rows : (slot + 1) * part.rows]  # [B]
    longest = max(1, int(lengths.max(initial=0)))
    steps = np.arange(longest)  # [L]
    inside = steps < lengths[:, None]  # [B, L]
    at = np.where(inside, starts[:, None] + steps, 0)  # [B, L]
    log_weights: F32 = np.full(inside.shape, -np.inf, np.float32)
    indices = np.zeros(inside.shape, np.int64)
    log_weights[inside] = np.log(part.weights[at[inside]])
    indices[inside] = inverse[at[inside]]
    ages: F32 = np.where(inside, part.ages[at] if part.ages.size else 0.0, 0.0).astype(np.float32)
    return SequenceTensors(*(to_device(array, device) for array in (indices, log_weights, ages)))


def batch_tensors(
    batch: Batch, inverse: I64, moments: dict[Side, Moments], device: torch.device
) -> BatchTensors:
    """Tensors of a batch; `inverse` covers the sides' keys one after another, in order of SIDES."""
    sides: dict[Side, SideTensors] = {}
    start = 0
    for side in SIDES:
        part = batch.parts[side]
        end = start + part.keys.size
        sides[side] = side_tensors(part, inverse[start:end], moments[side], device)
        start = end
    return BatchTensors(sides, to_device(batch.domain, device))

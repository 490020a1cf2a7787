"""What reached each entity last, and sums that forget with time: one pass over a batch, in its
order, so that equal batches give equal bytes."""

from __future__ import annotations

import numba
import numpy as np

from trainer.features import F32, I64


def _add_decayed(  # noqa: PLR0917  a kernel takes no keywords
    sums: F32,
    last_ms: I64,
    counts: I64,
    numbers: I64,
    event_ms: I64,
    added: F32,
    half_life_ms: int,
) -> None:
    for i in range(len(numbers)):
        e = numbers[i]
        gap = event_ms[i] - last_ms[e]
        if counts[e] == 0:
            sums[e] = added[i]
            last_ms[e] = event_ms[i]
        else:
            decay = np.float32(0.0)
            if half_life_ms > 0:
                decay = np.float32(2.0 ** (-abs(gap) / half_life_ms))
            if gap >= 0:
                for c in range(sums.shape[1]):
                    sums[e, c] = sums[e, c] * decay + added[i, c]
                last_ms[e] = event_ms[i]
            else:
                for c in range(sums.shape[1]):
                    sums[e, c] += added[i, c] * decay
        counts[e] += 1


add_decayed = numba.njit(cache=True)(_add_decayed)
"""sums[numbers] <- sums * 2^(-dt / half life) + added, for events [B] with `added` [B, C].

One older than the newest comes decayed itself. Updates `sums` [E, C], `last_ms` [E] and `counts`
[E] in place. The result does not depend on the order of events, but for rounding. Half-life 0 keeps
the newest."""


def _raise_to(times: I64, numbers: I64, values: I64) -> None:
    for i in range(len(numbers)):
        times[numbers[i]] = max(times[numbers[i]], values[i])


raise_to = numba.njit(cache=True)(_raise_to)
"""times[numbers] <- max(times, values), for `values` [B]; `times` [E] in place."""

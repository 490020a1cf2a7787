"""Running mean and variance of numeric slots, read before they are written."""

from __future__ import annotations

import numpy as np

from trainer.batch import F32

_CLIP = 5.0


class Moments:
    """Count, mean and sum of squared deviations of Sn columns, in float64 (Chan's merge)."""

    def __init__(self, columns: int) -> None:
        self._table = np.zeros((3, columns), np.float64)

    def normalise(self, column_values: F32) -> F32:
        """[B, Sn] -> [B, Sn]: (x - mean) / sd, clipped; 0 where missing or nothing is known yet."""
        count, mean, deviations = self._table
        sd = np.sqrt(deviations / np.maximum(count, 1.0) + 1e-6)
        normal = np.clip((column_values - mean) / sd, -_CLIP, _CLIP)
        normal[:, count < 2] = 0.0
        filled: F32 = np.nan_to_num(normal, nan=0.0).astype(np.float32)
        return filled

    def update(self, column_values: F32) -> None:
        """Merge [B, Sn] values; NaN = missing, not counted."""
        values = column_values.astype(np.float64)
        present = ~np.isnan(values)
        n = present.sum(0).astype(np.float64)
        filled = np.where(present, values, 0.0)
        mean = filled.sum(0) / np.maximum(n, 1.0)
        deviations = (np.where(present, values - mean, 0.0) ** 2).sum(0)
        count, old_mean, old_deviations = self._table
        total = np.maximum(count + n, 1.0)
        shift = mean - old_mean
        self._table[2] = old_deviations + deviations + shift**2 * count * n / total
        self._table[1] = old_mean + shift * n / total
        self._table[0] = count + n

    def dump(self) -> bytes:
        """Little-endian float64 [3, Sn]; `restore` takes it back."""
        return self._table.astype("<f8").tobytes()

    def restore(self, table: bytes) -> None:
        """Take back what `dump` gave; raises ValueError for another number of columns."""
        self._table = np.frombuffer(table, "<f8").reshape(self._table.shape).copy()

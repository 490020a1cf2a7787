"""What a store tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counts since opening, unless said otherwise. Of one moment between two calls."""

    rows_total: int
    """In the store now, rows not yet committed included."""
    rows_hot: int
    rows_spilled: int
    rows_dirty: int
    cache_rows_max: int
    row_bytes: int
    commit_id: int
    lookups_hot: int
    """Distinct keys per batch that were in the slab; likewise below."""
    lookups_spilled: int
    lookups_cold: int
    rows_created: int
    rows_refused: int
    """Keys without a row that admission gave none."""
    rows_evicted: int
    gradients_not_finite: int
    """Row updates left out since a gradient was NaN or infinite."""
    rows_committed: int
    """Deletions included."""
    table_bytes: int
    """Written as table files by commits; compaction comes on top."""

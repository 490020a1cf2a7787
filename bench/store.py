"""The embedding store against its peers: each figure is a ratio of turns taken by both, round by
round, one thread each. `--part` runs one part alone.

in_memory      every row hot, against torch, FBGEMM and TFRA (`store_in_memory.py`)
beyond_memory  a tenth of the rows hot, against LMDB and RocksDB (`store_beyond_memory.py`)
on_disk        reads past the page cache, checkpoints, restarts (likewise)
commit         what durability costs a running step (`store_commit.py`)
row_precision  what rows in bfloat16 cost a model (`store_row_precision.py`)

A peer or key that could not be measured is named under `not_run` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import store_beyond_memory
import store_commit
import store_in_memory
import store_row_precision
from measuring import Part, merged, run_benchmark, say

PARTS: dict[str, Callable[[bool], Part]] = {
    "in_memory": store_in_memory.measure,
    "beyond_memory": store_beyond_memory.measure,
    "on_disk": store_beyond_memory.measure_on_disk,
    "commit": store_commit.measure,
    "row_precision": store_row_precision.measure,
}


def measure(quick: bool) -> dict[str, Any]:
    """Every key of the report; see the module."""
    found = []
    for name, part in PARTS.items():
        say(name)
        found.append(part(quick))
    return merged(found).all


if __name__ == "__main__":
    run_benchmark("store", measure, PARTS)

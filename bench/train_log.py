"""The log of `bench train`: 26 slots with 1e6 values among them, as the join writes samples.

Values are drawn by popularity (rank^-1.05), vocabularies are as uneven as real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from embedding_store.keys import row_keys

START_MS = 1_700_000_000_000
USERS, ITEMS, DOMAINS = 300_000, 200_000, 4
_SIZES = (
    *(120_000, 90_000, 70_000, 60_000, 50_000, 40_000, 25_000, 15_000),
    *(10_000, 8_000, 5_000, 3_000, 2_000, 1_000, 500, 200, 100, 50, 50, 40, 30, 20),
)
KEYS = 1_000_000
VOCABULARIES = {f"c{n:02}": size for n, size in enumerate(_SIZES)}
VOCABULARIES["c22"] = KEYS - sum(_SIZES) - USERS - ITEMS - DOMAINS
_EXPONENT = 1.05
_SEED = 5


def config_values() -> dict[str, Any]:
    """Sections of the config: 3 implicit slots and 23 of features, one kind."""
    sides = ("user", "item", "context")
    return {
        "domains": [f"d{n}" for n in range(DOMAINS)],
        "kinds": {"click": {"window": "1h"}},
        "slots": {
            name: {"side": sides[n % 3], "type": "categorical"}
            for n, name in enumerate(VOCABULARIES)
        },
    }


def sample_lines(count: int) -> Iterator[bytes]:
    """`count` final samples, JSON, in order of event time."""
    draw = np.random.default_rng(_SEED)
    sizes = {"user": USERS, "item": ITEMS, "domain": DOMAINS, **VOCABULARIES}
    columns = {name: _popular(draw, size, count) for name, size in sizes.items()}
    appeal = draw.normal(size=(3, 1000))
    logit = -2 + sum(
        appeal[k][columns[name] % 1000] for k, name in enumerate(("user", "item", "c03"))
    )
    clicks = (draw.random(count) < 1 / (1 + np.exp(-logit))).tolist()
    lists = {name: column.tolist() for name, column in columns.items()}
    for n in range(count):
        click, at = int(clicks[n]), START_MS + 5 * n
        yield orjson.dumps(
            {
                "impression_id": f"i{n}",
                "user_id": f"user{lists['user'][n]}",
                "item_id": f"item{lists['item'][n]}",
                "domain": f"d{lists['domain'][n]}",
                "event_ms": at,
                "features": {name: f"{name}v{lists[name][n]}" for name in VOCABULARIES},
                "produced_ms": at + 3,
                "labels": {"click": click},
                "delays_ms": {"click": 900} if click else {},
                "values": {},
                "keep_rate": 1.0,
                "state": "final",
                "elapsed_ms": 3_600_000,
                "revision": 0,
            }
        )


@lru_cache(maxsize=1)
def _names() -> list[tuple[str, list[str]]]:
    return [
        ("user_id", [f"user{n}" for n in range(USERS)]),
        ("item_id", [f"item{n}" for n in range(ITEMS)]),
        ("domain", [f"d{n}" for n in range(DOMAINS)]),
        *((name, [f"{name}v{n}" for n in range(size)]) for name, size in VOCABULARIES.items()),
    ]


def known_keys(
    slot_number: Callable[[str], int],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint16]]:
    """(keys [KEYS], the number of each key's slot [KEYS])"""
    keys = np.concatenate([row_keys(slot, values) for slot, values in _names()])
    counts = [len(values) for _, values in _names()]
    numbers = [slot_number(slot) for slot, _ in _names()]
    return keys, np.repeat(np.asarray(numbers, np.uint16), counts)


def _popular(draw: np.random.Generator, size: int, count: int) -> npt.NDArray[np.int64]:
    """`count` ranks below `size`, the first the most frequent."""
    weights = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -_EXPONENT)
    return np.searchsorted(weights, draw.random(count) * weights[-1]).astype(np.int64)

"""A small stream of samples with a known signal, as the join would emit it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomlkit

from settings.config import Config
from topics.sample import Sample, encode_sample

START_MS = 1_700_000_000_000
WINDOW_MS = 7_200_000


def make_config(**sections: Any) -> Config:
    """Every slot type on every side, two kinds, count cuts; `sections` override."""
    values: dict[str, Any] = {
        "domains": ("feed", "search"),
        "kinds": {"click": {"window": "1h"}, "buy": {"window": "2h"}},
        "slots": {
            "age": {"side": "user", "type": "numeric"},
            "history": {"side": "user", "type": "sequence", "length_max": 5},
            "tags": {"side": "item", "type": "multi", "length_max": 3},
            "vec": {"side": "item", "type": "vector", "dim": 4},
            "os": {},
            "hour": {"type": "numeric"},
        },
        "trainer": {"cut_by": "count", "batch_samples_max": 64, "commit_every_steps": 3},
    }
    return Config.model_validate(values | sections)


def config_toml(prefix: str, **trainer: Any) -> str:
    """The same as a file, on one partition; `trainer` overrides that section."""
    config = make_config(kafka={"topic_prefix": prefix, "partitions": 1})
    values = config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    values["trainer"] |= trainer
    return tomlkit.dumps(values)


def make_samples(count: int, *, correct: bool = False, seed: int = 0) -> list[Sample]:
    """`count` impressions' samples in the order of emission. Users have a click rate of their own,
    so that something can be learnt from their ids."""
    draw = random.Random(seed)
    rates = [draw.gauss(-0.5, 2.0) for _ in range(60)]
    emitted: list[tuple[int, int, Sample]] = []
    at_ms = START_MS
    for k in range(count):
        at_ms += draw.randrange(0, 4000)
        for emitted_ms, sample in _story(k, at_ms, rates, draw, correct):
            emitted.append((emitted_ms, len(emitted), sample))
    return [sample for _, _, sample in sorted(emitted, key=lambda e: e[:2])]


def _story(
    k: int, at_ms: int, rates: list[float], draw: random.Random, correct: bool
) -> Iterator[tuple[int, Sample]]:
    user, item = draw.randrange(len(rates)), draw.randrange(40)
    click = int(draw.random() < 1 / (1 + math.exp(-rates[user])))
    buy = int(click and draw.random() < 0.3)
    delays = {"click": draw.randrange(60_000)} if click else {}
    if buy:
        delays["buy"] = draw.randrange(WINDOW_MS)
    features: dict[str, Any] = {
        "age": draw.randrange(18, 70),
        "history": [
            {"item_id": f"i{draw.randrange(40)}", "event_ms": at_ms - draw.randrange(1, 10**8)}
            for _ in range(draw.randrange(0, 9))
        ],
        "tags": [f"t{n}" for n in draw.sample(range(9), draw.randrange(0, 4))],
        "vec": [draw.gauss(0, 1) for _ in range(4)],
        "os": draw.choice(["ios", "android"]),
        "hour": at_ms / 3_600_000 % 24,
    }
    for name in list(features):
        if draw.random() < 0.05:
            del features[name]

    def sample(state: Any, known: dict[str, int], kinds: list[str], elapsed_ms: int) -> Sample:
        return Sample(
            impression_id=f"imp{k}",
            user_id=f"u{user}",
            item_id=f"i{item}",
            domain=("feed", "search", "rare")[k % 3],
            event_ms=at_ms,
            produced_ms=at_ms + max(known.values(), default=0) + 7,
            features=features,
            labels={kind: 1 if kind in known else 0 for kind in kinds},
            delays_ms=known,
            values={},
            keep_rate=1.0,
            state=state,
            elapsed_ms=elapsed_ms,
            revision=0,
        )

    kinds = ["click", "buy"]
    if correct:
        yield at_ms, sample("early", {}, kinds, 0)
        for kind, delay in delays.items():
            yield at_ms + delay, sample("correction", {kind: delay}, [kind], delay)
    yield at_ms + WINDOW_MS, sample("final", delays, kinds, WINDOW_MS)


def write_samples(samples: list[Sample], path: Path) -> Path:
    """`samples.jsonl`."""
    path.write_bytes(b"".join(encode_sample(s) + b"\n" for s in samples))
    return path

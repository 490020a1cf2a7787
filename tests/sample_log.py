"""A seeded log of samples as the join writes them under policy `correct`, for the trainer's tests.

Not a stand-in for the join: the join has its own tests. Here the log must be the same bytes for
every run that is compared, so it is written once and read by several trainers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from topics.sample import Sample

T0_MS = 1_700_000_000_000
WINDOW_MS = 20_000
KINDS = ("click", "buy")


def samples(count: int, seed: int = 0) -> Iterator[Sample]:
    """`count` impressions 10 ms apart; each early at its time, corrections and final in order."""
    draw = random.Random(seed)
    due: list[tuple[int, int, Sample]] = []
    for n in range(count):
        now = T0_MS + 10 * n
        due.sort(key=lambda entry: entry[:2])
        while due and due[0][0] <= now:
            yield due.pop(0)[2]
        yield from _impression(draw, n, now, due)
    due.sort(key=lambda entry: entry[:2])
    for _, _, sample in due:
        yield sample


def _impression(
    draw: random.Random, n: int, now: int, due: list[tuple[int, int, Sample]]
) -> Iterator[Sample]:
    user, item = f"u{int(draw.paretovariate(0.3)) % 2500}", f"i{int(draw.paretovariate(0.4)) % 700}"
    fields = {
        "impression_id": f"imp{n}",
        "user_id": user,
        "item_id": item,
        "domain": draw.choice(("feed", "search")),
        "event_ms": now,
        "features": {
            "country": f"c{hash_of(user) % 7}",
            "brand": f"b{hash_of(item) % 11}",
            "age": float(18 + hash_of(user) % 50),
            "tags": [f"t{draw.randrange(20)}" for _ in range(draw.randrange(4))],
        },
        "keep_rate": 1.0,
    }
    yield _sample(fields, "early", dict.fromkeys(KINDS, 0), {}, 0, 0, now)
    appeal = (hash_of(user) % 5 == hash_of(item) % 5) * 0.4 + 0.05
    delays: dict[str, int] = {}
    for kind, factor in zip(KINDS, (1.0, 0.3), strict=True):
        if draw.random() < appeal * factor:
            delays[kind] = int(draw.expovariate(1 / 4000)) % WINDOW_MS
    revision = 1
    for kind, delay in sorted(delays.items(), key=lambda kv: kv[1]):
        sample = _sample(fields, "correction", {kind: 1}, {kind: delay}, delay, revision, now)
        due.append((now + delay, n, sample))
        revision += 1
    labels = {kind: int(kind in delays) for kind in KINDS}
    due.append(
        (now + WINDOW_MS, n, _sample(fields, "final", labels, delays, WINDOW_MS, revision, now))
    )


def _sample(
    fields: dict[str, object],
    state: str,
    labels: dict[str, int],
    delays: dict[str, int],
    elapsed_ms: int,
    revision: int,
    now: int,
) -> Sample:
    return Sample(
        **fields,  # type: ignore[arg-type]
        state=state,  # type: ignore[arg-type]
        labels=labels,  # type: ignore[arg-type]
        delays_ms=dict(delays),
        values={},
        elapsed_ms=elapsed_ms,
        revision=revision,
        produced_ms=now + elapsed_ms,
    )


def hash_of(name: str) -> int:
    """A number of the name alone; `hash()` would change with every process."""
    return sum(ord(c) * 31**i for i, c in enumerate(name))


SLOTS_TOML = """
[slots.country]
side = "user"
[slots.age]
side = "user"
type = "numeric"
[slots.brand]
side = "item"
[slots.tags]
type = "multi"
"""

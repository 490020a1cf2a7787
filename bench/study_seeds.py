"""What a study found per seed, kept beside its table: a run that was cut goes on with `--resume`,
and seeds can be added to those that are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from study_frame import Options, say

Found = Mapping[str, Any]


class Kept:
    """`NAME.seeds.json`: what was measured, by seed or by seed and arm; written after each.

    With `options.resume` what is in it is taken from there: it is as good as the code that measured
    it, which nothing checks. Exits with 2 when it is of a run of the other size, or of another
    `stream` (a digest of what the arms read, where that is a file of the user's).
    """

    def __init__(self, options: Options, name: str, stream: str = "") -> None:
        self._path = options.out / f"{name}.seeds.json"
        self._of: dict[str, Any] = {"quick": options.quick} | ({"stream": stream} if stream else {})
        self._seeds: dict[str, Any] = {}
        self._seeds_max = options.seeds
        if options.resume and self._path.exists():
            before = json.loads(self._path.read_text("utf-8"))
            self._seeds = before.pop("seeds")
            for key, value in self._of.items():
                if before.get(key) != value:
                    say(
                        f"{self._path}: expected seeds of a run with {key} = {value}, they are of "
                        f"{before.get(key)}; drop --resume"
                    )
                    raise SystemExit(2)

    def take(self, measure: Callable[[], Found], seed: int, arm: str = "") -> Found:
        """What `measure` finds for `seed`, or for `arm` under it: kept, or measured now."""
        row, key = (self._seeds.setdefault(str(seed), {}), arm) if arm else (self._seeds, str(seed))
        if key in row:
            say(f"seed {seed}{arm and f', {arm}'}: as kept in {self._path.name}")
        else:
            row[key] = measure()
            text = json.dumps(self._of | {"seeds": self._seeds}, indent=1) + "\n"
            self._path.with_suffix(".tmp").write_text(text, "utf-8")
            self._path.with_suffix(".tmp").replace(self._path)
        found: Found = row[key]
        return found

    def runs(self, arm: str) -> list[Found]:
        """What is there of `arm`, by seed."""
        there = [seed for seed in range(self._seeds_max) if arm in self._seeds.get(str(seed), {})]
        return [self._seeds[str(seed)][arm] for seed in there]


def over_seeds(options: Options, name: str, measure: Callable[[int], Found]) -> dict[str, Any]:
    """What `measure` finds for each seed, as one tree with a list over seeds at every leaf."""
    kept = Kept(options, name)
    return gathered([kept.take(partial(measure, seed), seed) for seed in range(options.seeds)])


def gathered(trees: Sequence[Found]) -> dict[str, Any]:
    """One tree of those of the seeds, with a list over seeds at every leaf."""
    return {
        key: gathered([tree[key] for tree in trees])
        if isinstance(first, Mapping)
        else [tree[key] for tree in trees]
        for key, first in trees[0].items()
    }


__all__ = ["Kept", "gathered", "over_seeds"]

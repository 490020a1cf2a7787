"""What a study found per seed, kept beside its table: a run that was cut goes on with `--resume`,
and seeds can be added to those that are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from study_frame import Options, say


def over_seeds(
    options: Options, name: str, measure: Callable[[int], Mapping[str, Any]]
) -> dict[str, Any]:
    """What `measure` finds for each seed, as one tree with a list over seeds at every leaf.

    `NAME.seeds.json` is written after each seed. With `options.resume` a seed that is in it is
    taken from there: it is as good as the code that measured it, which nothing checks. Exits with
    2 when it is of a run of the other size.
    """
    path = options.out / f"{name}.seeds.json"
    kept: dict[str, Any] = {}
    if options.resume and path.exists():
        before = json.loads(path.read_text("utf-8"))
        if before["quick"] is not options.quick:
            say(f"{path}: expected seeds of a run with quick = {options.quick}; drop --resume")
            raise SystemExit(2)
        kept = before["seeds"]
    for seed in range(options.seeds):
        if str(seed) in kept:
            say(f"seed {seed}: as kept in {path.name}")
            continue
        kept[str(seed)] = measure(seed)
        whole = json.dumps({"quick": options.quick, "seeds": kept}, indent=1)
        path.with_suffix(".tmp").write_text(whole + "\n", "utf-8")
        path.with_suffix(".tmp").replace(path)
    return gathered([kept[str(seed)] for seed in range(options.seeds)])


def gathered(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One tree of those of the seeds, with a list over seeds at every leaf."""
    return {
        key: gathered([tree[key] for tree in trees])
        if isinstance(first, Mapping)
        else [tree[key] for tree in trees]
        for key, first in trees[0].items()
    }

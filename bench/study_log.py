"""A source's events as the join would emit them under policy `correct`, without the join.

Attribution as in the design: a conversion that names an impression belongs to it within the window;
one that names none belongs to the newest impression of its pair. The join itself has its own tests;
here many arms must read one log.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from runtime.sources.traffic import Source
from settings.config import Config
from trainer.portion import Portion
from trainer.slots import Plan


@dataclass(slots=True)
class Log:
    """One stream for every arm."""

    lines: list[bytes] = field(default_factory=list)
    """Samples as JSON, in the order of emission."""
    emitted_ms: list[int] = field(default_factory=list)
    """Event time at which each is emitted."""
    truth: dict[str, dict[str, float]] = field(default_factory=dict)
    """Impression -> true probability per kind, where the source knows it."""
    portions: tuple[Plan, int, list[Portion]] | None = None
    """What the trainer reads of `lines`, made for the last arm's slots and batch size."""


def joined(source: Source, config: Config, impressions_max: int) -> Log:
    """Early at `join.elapsed`, a correction per later conversion, a final as the windows close;
    under policy `wait` the finals alone."""
    log, waits = Log(), config.join.policy == "wait"
    open_: dict[str, dict[str, Any]] = {}
    pairs: dict[tuple[str, str], str] = {}
    due: list[tuple[int, int, str, dict[str, Any]]] = []
    order = count = 0
    elapsed, window = config.join.elapsed, config.window_ms_max

    def emit(until_ms: float) -> None:
        while due and due[0][0] <= until_ms:
            at, _, state, line = heapq.heappop(due)
            _emit(log, at, state, line, config)
            if state == "final":
                open_.pop(line["impression_id"], None)

    for event in source.events():
        line = orjson.loads(event.line)
        at = line["event_ms"]
        if event.stream == "impressions":
            if count >= impressions_max:
                break
            emit(at - 1)
            count += 1
            line["seen"] = {}
            open_[line["impression_id"]] = line
            pairs[line["user_id"], line["item_id"]] = line["impression_id"]
            if event.truth is not None:
                truth = orjson.loads(event.truth)
                log.truth[line["impression_id"]] = truth["probabilities"]
            for wait, state in ((elapsed, "early"), (window, "final"))[waits:]:
                order += 1
                heapq.heappush(due, (at + wait, order, state, line))
            continue
        emit(at - 1)
        named = line["impression_id"] or pairs.get((line["user_id"], line["item_id"]))
        shown = open_.get(named) if named is not None else None
        kind = line["kind"]
        if shown is None or kind not in config.kinds or kind in shown["seen"]:
            continue
        delay = at - shown["event_ms"]
        if 0 <= delay <= config.kinds[kind].window:
            shown["seen"][kind] = delay
            if delay > elapsed and not waits:
                order += 1
                heapq.heappush(due, (at, order, kind, shown))
    emit(float("inf"))
    return log


def _emit(log: Log, at: int, state: str, line: dict[str, Any], config: Config) -> None:
    sample = {name: value for name, value in line.items() if name != "seen"}
    known = {kind: d for kind, d in line["seen"].items() if line["event_ms"] + d <= at}
    if state in ("early", "final"):
        labels = {kind: int(kind in known) for kind in config.kinds}
    else:
        labels, known, state = {state: 1}, {state: known[state]}, "correction"
    sample |= {
        "labels": labels,
        "delays_ms": known,
        "values": {},
        "keep_rate": 1.0,
        "state": state,
        "elapsed_ms": at - line["event_ms"],
        "revision": 0,
        "produced_ms": at,
    }
    log.lines.append(orjson.dumps(sample))
    log.emitted_ms.append(at)


def finals(log: Log) -> Iterator[dict[str, Any]]:
    """The final samples, decoded."""
    for line in log.lines:
        sample = orjson.loads(line)
        if sample["state"] == "final":
            yield sample

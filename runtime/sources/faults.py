"""Makes traffic as untidy as real traffic: every verdict of the join occurs, at a low rate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson

from runtime.sources.traffic import TrafficEvent

DUPLICATE_SHARE = 0.004
GHOST_SHARE = 0.004
BROKEN_SHARE = 0.002
YEAR_2099_MS = 4_070_908_800_000


class Faults:
    """Copies, ghosts and broken lines around honest events; the honest events all still come.

    Ghosts are events of pairs and impressions that exist nowhere, so they change no label: an
    impression that comes too late, a conversion that names nothing, the same but late.
    """

    def __init__(
        self, random: np.random.Generator, *, lateness_ms: int, enabled: bool = True
    ) -> None:
        self._random = random
        self._late_ms = 3 * lateness_ms + 3_000
        self._enabled = enabled
        self._made = 0

    def around(self, event: TrafficEvent) -> Iterator[TrafficEvent]:
        """`event`, and sometimes a fault beside it. Not in `due_ms` order."""
        yield event
        if not self._enabled:
            return
        draw = float(self._random.random())
        if draw < DUPLICATE_SHARE:
            yield TrafficEvent(event.stream, event.due_ms + 500, event.line)
        elif draw < DUPLICATE_SHARE + GHOST_SHARE:
            yield self._ghost(event)
        elif draw < DUPLICATE_SHARE + GHOST_SHARE + BROKEN_SHARE:
            yield self._broken(event)

    def _ghost(self, event: TrafficEvent) -> TrafficEvent:
        self._made += 1
        number, which = self._made, self._made % 3
        common = {
            "event_ms": event.due_ms,
            "user_id": f"ghost{number}",
            "item_id": "item0",
        }
        if which == 0:
            line = orjson.dumps(
                {"impression_id": f"late{number}", **common, "domain": "feed", "features": {}}
            )
            return TrafficEvent("impressions", event.due_ms + self._late_ms, line)
        line = orjson.dumps(
            {
                "conversion_id": f"ghost{number}",
                "impression_id": f"nowhere{number}",
                **common,
                "kind": "click",
                "value": None,
            }
        )
        due_ms = event.due_ms + (self._late_ms if which == 1 else 0)
        return TrafficEvent("conversions", due_ms, line)

    def _broken(self, event: TrafficEvent) -> TrafficEvent:
        self._made += 1
        id_name = b'"impression_id":"' if event.stream == "impressions" else b'"conversion_id":"'
        broken = [
            event.line[: len(event.line) // 2],
            b"\xff\xfe" + event.line,
            event.line.replace(b'"event_ms":', b'"event_ms":NaN,"was":', 1),
            event.line.replace(id_name, id_name + b"year2099-", 1).replace(
                f'"event_ms":{event.due_ms}'.encode(), f'"event_ms":{YEAR_2099_MS}'.encode(), 1
            ),
            event.line.replace(b'"user_id":', b'"user":', 1),
        ][self._made % 5]
        return TrafficEvent(event.stream, event.due_ms, broken)

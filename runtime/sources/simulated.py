"""Ad traffic with a known truth: true probabilities per impression, and every verdict of the join.

A kind's probability in `truth` is that of a conversion *within its window*: the label's own rate,
so that calibration and regret can be measured against it. A few conversions come after the window
(they become orphans), and some events are sent twice, late, broken, or point to nothing.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson

from runtime.run_state import now_ms
from runtime.sources.faults import Faults
from runtime.sources.traffic import TrafficEvent
from runtime.sources.world import (
    AGREEMENT,
    CATEGORIES,
    DEVICES,
    DOMAINS,
    DRIFT_MS,
    FACTORS,
    KINDS,
    Shown,
    World,
)
from settings.duration import format_duration

HISTORY_MAX = 10
UNNAMED_SHARE = 0.3
"""Conversions that name no impression, so that the join must find the last touch."""
_CHUNK = 256
_DOMAIN_NAMES = tuple(DOMAINS)


class SimulatedTraffic:
    """Endless unless `impressions_max` is given. Event time starts at `start_ms` (unix ms), or
    without it when the events are asked for.

    Same arguments with a `start_ms`, same bytes. `rate` is impressions per second of event time.
    """

    name = "simulated"
    speedup = 1.0

    def __init__(
        self,
        *,
        start_ms: int | None = None,
        seed: int = 0,
        rate: float = 200.0,
        users: int = 1_500,
        items: int = 400,
        item_arrival_ms: int = 2_000,
        impressions_max: int | None = None,
        lateness_ms: int = 2_000,
        faults: bool = True,
        agreement: float = AGREEMENT,
        logit_shift: float = 0.0,
        drift_ms: float = DRIFT_MS,
        drift_until_ms: float = math.inf,
    ) -> None:
        """`drift_ms`: event time in which a user's interests change altogether. `drift_until_ms`:
        they stay as they are then, and the same users see the same items: what a model that knew
        all of that moment would say of later impressions."""
        self._start_ms = start_ms
        self._seed = seed
        self._rate = rate
        self._size = (users, items)
        self._item_arrival_ms = item_arrival_ms
        self._impressions_max = impressions_max
        self._lateness_ms = lateness_ms
        self._faults = faults
        self._agreement, self._logit_shift = agreement, logit_shift
        self._drift = (drift_ms, drift_until_ms)

    def config_values(self) -> Mapping[str, Any]:
        slots: dict[str, dict[str, Any]] = {
            "user_interests": {"side": "user", "type": "multi", "length_max": 3},
            "user_activity": {"side": "user", "type": "numeric"},
            "recent_items": {"side": "user", "type": "sequence", "length_max": HISTORY_MAX},
            "item_category": {"side": "item", "type": "categorical"},
            "item_advertiser": {"side": "item", "type": "categorical"},
            "item_price": {"side": "item", "type": "numeric"},
            "item_vector": {"side": "item", "type": "vector", "dim": FACTORS},
            "device": {"side": "context", "type": "categorical"},
            "hour": {"side": "context", "type": "categorical"},
        }
        return {
            "domains": list(DOMAINS),
            "kinds": {k: {"window": format_duration(w.window_ms)} for k, w in KINDS.items()},
            "slots": slots,
            "events": {"future_bound": "24h"},
            "join": {"lateness": format_duration(self._lateness_ms)},
        }

    def events(self) -> Iterator[TrafficEvent]:
        faults = Faults(
            np.random.Generator(np.random.PCG64(self._seed + 1)),
            lateness_ms=self._lateness_ms,
            enabled=self._faults,
        )
        heap: list[tuple[int, int, TrafficEvent]] = []
        order = 0
        for event in self._honest():
            for sent in faults.around(event):
                heapq.heappush(heap, (sent.due_ms, order, sent))
                order += 1
            while heap and heap[0][0] <= event.due_ms:
                yield heapq.heappop(heap)[2]
        while heap:
            yield heapq.heappop(heap)[2]

    def _honest(self) -> Iterator[TrafficEvent]:
        """Every impression once and every conversion once, in event time."""
        random = np.random.Generator(np.random.PCG64(self._seed))
        start_ms = now_ms() if self._start_ms is None else self._start_ms
        world = World(
            random,
            *self._size,
            start_ms,
            self._item_arrival_ms,
            agreement=self._agreement,
            logit_shift=self._logit_shift,
            drift_ms=self._drift[0],
            drift_until_ms=self._drift[1],
        )
        story = _Story(world)
        clock_ms = float(start_ms)
        left = math.inf if self._impressions_max is None else self._impressions_max
        while left > 0:
            count = int(min(_CHUNK, left))
            gaps = random.exponential(1000 / self._rate, count)
            times = (clock_ms + np.cumsum(gaps)).astype(np.int64)
            clock_ms += float(gaps.sum())
            shown = world.show(times)
            unnamed = np.less(random.random(shown.delays_ms.shape), UNNAMED_SHARE)
            for n in range(count):
                yield from story.conversions_until(int(times[n]))
                yield story.impression(shown, n, unnamed[n].tolist())
            left -= count
        yield from story.conversions_until(None)


class _Story:
    """What has been shown and clicked so far, and the conversions still to come."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._made = 0
        self._due: list[tuple[int, str, bool, dict[str, Any]]] = []
        self._clicked: defaultdict[int, deque[dict[str, Any]]] = defaultdict(
            lambda: deque(maxlen=HISTORY_MAX)
        )
        self._newest_of_pair: dict[tuple[str, str], str] = {}

    def impression(self, shown: Shown, n: int, unnamed: list[bool]) -> TrafficEvent:
        """The n-th impression, its true probabilities; its conversions are kept until due."""
        event_ms, user, item = int(shown.times_ms[n]), int(shown.users[n]), int(shown.items[n])
        impression_id, user_id, item_id = f"i{self._made}", f"u{user}", f"item{item}"
        self._made += 1
        self._newest_of_pair[user_id, item_id] = impression_id
        line = orjson.dumps(
            {
                "impression_id": impression_id,
                "event_ms": event_ms,
                "user_id": user_id,
                "item_id": item_id,
                "domain": _DOMAIN_NAMES[shown.domains[n]],
                "features": self._features(user, item, int(shown.devices[n]), event_ms),
            }
        )
        probabilities = shown.probabilities[n].round(6).tolist()
        truth = {
            "impression_id": impression_id,
            "event_ms": event_ms,
            "probabilities": dict(zip(KINDS, probabilities, strict=True)),
        }
        for k, kind in enumerate(KINDS):
            delay_ms, value = int(shown.delays_ms[n, k]), float(shown.values[n, k])
            if delay_ms < 0:
                continue
            conversion_id = f"{impression_id}-{kind}"
            conversion: dict[str, Any] = {
                "conversion_id": conversion_id,
                "impression_id": impression_id,
                "event_ms": event_ms + delay_ms,
                "user_id": user_id,
                "item_id": item_id,
                "kind": kind,
                "value": None if math.isnan(value) else value,
            }
            due = (event_ms + delay_ms, conversion_id, unnamed[k], conversion)
            heapq.heappush(self._due, due)
        return TrafficEvent("impressions", event_ms, line, orjson.dumps(truth))

    def conversions_until(self, now_ms: int | None) -> Iterator[TrafficEvent]:
        """Conversions due before `now_ms` (None = all), in event time."""
        while self._due and (now_ms is None or self._due[0][0] < now_ms):
            due_ms, _, unnamed, conversion = heapq.heappop(self._due)
            user_id, item_id = conversion["user_id"], conversion["item_id"]
            if conversion["kind"] == "click":
                self._clicked[int(user_id[1:])].append({"item_id": item_id, "event_ms": due_ms})
            # Unnamed only where the last touch is this very impression, so that truth stays true.
            if unnamed and self._newest_of_pair[user_id, item_id] == conversion["impression_id"]:
                conversion["impression_id"] = None
            yield TrafficEvent("conversions", due_ms, orjson.dumps(conversion))

    def _features(self, user: int, item: int, device: int, event_ms: int) -> dict[str, Any]:
        world = self._world
        features: dict[str, Any] = {
            "user_interests": world.interests(user),
            "user_activity": round(float(world.user_activity[user]), 4),
            "item_category": CATEGORIES[world.item_categories[item]],
            "item_advertiser": f"a{world.item_advertisers[item]}",
            "item_price": float(world.item_prices[item]),
            "item_vector": world.item_vectors[item].tolist(),
            "device": DEVICES[device],
            "hour": str(event_ms // 3_600_000 % 24),
        }
        if self._clicked[user]:
            features["recent_items"] = list(self._clicked[user])
        return features

"""The background sweep: every walk of `age_max` publishes every entity's vectors anew. So a vector
grows no older than `age_max`, and no older than twice that where new entities move its turn.

An entity that no event touches keeps the vector of its last version while the weights go on. The
sweep walks all of them in order of key, spread evenly over `age_max` of event time. Its place is
durable with the commit (space `sweep`); after a crash it goes on behind it. Under cut_by = "count"
a walk is taken at once, so that bytes depend on the log alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import takewhile

import msgspec

from embedding_store.store import EmbeddingStore
from trainer.entities import Entities, EntityKey

SPACE = "sweep"


class _State(msgspec.Struct):
    begun_ms: int = -1
    """Event time at which the walk began."""
    behind: bytes = b""
    """The newest key taken."""
    taken: int = 0
    of: int = 0
    """Entities when it began."""
    is_whole: bool = False


class RefreshSweep:
    """The walks over one store's entities, one after another."""

    def __init__(
        self, store: EmbeddingStore, entities: Entities, age_max_ms: int, *, by_count: bool
    ) -> None:
        self._store, self._entities = store, entities
        self._age_max_ms, self._by_count = age_max_ms, by_count
        raw = store.get(SPACE, b"state")
        self._state = _State() if raw is None else msgspec.msgpack.decode(raw, type=_State)
        self._walk: Iterator[tuple[EntityKey, bool]] | None = None

    def due(self, now_ms: int) -> list[tuple[EntityKey, bool]]:
        """(key, whether it has a CR) of those whose turn has come by the event time `now_ms`."""
        state = self._state
        if state.begun_ms < 0 or now_ms - state.begun_ms >= self._age_max_ms:
            rest = [] if state.begun_ms < 0 else self._take(state.of + 1)
            count = sum(1 for _ in self._entities.everything())
            first = state.begun_ms < 0
            self._state, self._walk = _State(begun_ms=now_ms, of=count), None
            if self._by_count and not first:
                return self._take(count + 1)
            return rest
        if self._by_count:
            return []
        share = (now_ms - state.begun_ms) / self._age_max_ms
        return self._take(math.ceil(state.of * share) - state.taken)

    def retire(self, keys: Iterable[EntityKey]) -> None:
        """Entities that are forgotten: the place in the walk must not name them either."""
        gone, behind = set(keys), self._state.behind
        if behind in gone:
            before = takewhile(lambda one: one[0] < behind, self._entities.everything())
            self._state.behind = max((key for key, _ in before if key not in gone), default=b"")

    def stage(self) -> None:
        """Durable with the next commit."""
        self._store.put(SPACE, b"state", msgspec.msgpack.encode(self._state))

    def _take(self, count: int) -> list[tuple[EntityKey, bool]]:
        state = self._state
        found: list[tuple[EntityKey, bool]] = []
        if self._walk is None and not state.is_whole:
            self._walk = self._entities.everything()
        while self._walk is not None and len(found) < count:
            one = next(self._walk, None)
            if one is None:
                self._walk, state.is_whole = None, True
            elif one[0] > state.behind:
                state.behind = one[0]
                state.taken += 1
                found.append(one)
        return found

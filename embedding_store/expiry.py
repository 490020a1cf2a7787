"""Which rows have had their time: by age, by decayed score, and by how many a slot may have.

Reads row headers and nothing else. A sweep walks the committed rows in order of key, a slice at a
time, so that each call is short; a row is judged by its header as it is at that moment, so one that
was touched since its slice was read stays. Rows not yet committed are too young to be asked.

    score = count * 2 ^ -((now - last_touched) / half_life)

`rows_max` keeps the rows of the highest score (or, without a half-life, the newest touched); equal
ones go by key, the smaller first. It needs two walks: the first ranks the slot, the second deletes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import StoreMisuse
from embedding_store.layout import RowLayout
from embedding_store.row import Headers

REASONS: Final = ("ttl", "score", "rows_max")
_STAYS: Final = 255
_NEVER: Final = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiryRule:
    """When rows of one slot go; None = not by this."""

    ttl_s: int | None = None
    """Untouched for longer than this."""
    rows_max: int | None = None
    score_min: float | None = None
    """A decayed score below this; needs `half_life_s`."""
    half_life_s: int | None = None

    def __post_init__(self) -> None:
        numbers = (self.ttl_s, self.rows_max, self.score_min, self.half_life_s)
        if any(number is not None and number <= 0 for number in numbers):
            raise StoreMisuse(f"expiry rules hold numbers above 0: rule=`{self}`")
        if self.score_min is not None and self.half_life_s is None:
            raise StoreMisuse(f"a least score needs a half-life: score_min=`{self.score_min}`")

    @property
    def keeps_all(self) -> bool:
        return self.ttl_s is None and self.rows_max is None and self.score_min is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiryPolicy:
    """The rules of a store's slots."""

    default: ExpiryRule = ExpiryRule()
    slots: Mapping[str, ExpiryRule] = field(default_factory=dict)
    """Slot -> its own rule."""

    @property
    def keeps_all(self) -> bool:
        return self.default.keeps_all and all(rule.keeps_all for rule in self.slots.values())


@dataclass(slots=True)
class SlotExpired:
    """What goes of one slot."""

    rows: int = 0
    ttl: int = 0
    score: int = 0
    rows_max: int = 0
    oldest_touched_s: int | None = None
    """Of the rows that go."""


@dataclass(slots=True)
class Expired:
    """What one sweep found, or took."""

    examined: int = 0
    rows: int = 0
    bytes: int = 0
    """Of the rows as they lie on disk, before compaction gives them back."""
    by_slot: dict[str, SlotExpired] = field(default_factory=dict)
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """uint64[rows], in order."""


class Sweepable(Protocol):
    """What a sweep walks: `tiers.Tiers`."""

    def headers_after(self, key: int, limit: int) -> tuple[Headers, int | None]:
        """(headers of the next committed rows above `key` in order, as they are now: at most
        `limit`; the key to go on from, None = the end)."""

    def drop(self, keys: NDArray[np.uint64]) -> None:
        """Delete rows; durable with the next commit."""


class Rules:
    """A policy by slot number: vectorised over headers [N]."""

    def __init__(self, policy: ExpiryPolicy, layout: RowLayout) -> None:
        unknown = sorted(set(policy.slots) - set(layout.slots))
        if unknown:
            raise StoreMisuse(
                f"expiry rules of slots that no row names: slots=`{unknown}` "
                f"expected among `{sorted(layout.slots)}`"
            )
        self._rules = [policy.default] * (1 + max(layout.numbers.values(), default=0))
        for slot, rule in policy.slots.items():
            self._rules[layout.slot_number(slot)] = rule
        self._ttl = np.array([r.ttl_s or _NEVER for r in self._rules], np.int64)
        self._least = np.array([r.score_min or 0.0 for r in self._rules], np.float64)
        self._half_life = np.array([r.half_life_s or np.inf for r in self._rules], np.float64)
        self._capped = np.array([r.rows_max is not None for r in self._rules], np.bool_)

    @property
    def ranks(self) -> bool:
        """Whether a slot has a greatest number of rows."""
        return bool(self._capped.any())

    def due(self, headers: Headers, now_s: int) -> NDArray[np.uint8]:
        """uint8[N]: position in REASONS of why a row goes by itself, _STAYS if it does not."""
        slots = self._slots(headers)
        verdict = np.full(len(headers), _STAYS, np.uint8)
        verdict[self._score(headers, now_s) < self._least[slots]] = 1
        age = now_s - headers["last_touched_s"].astype(np.int64)
        verdict[age > self._ttl[slots]] = 0
        return verdict

    def capped(self, headers: Headers) -> NDArray[np.bool_]:
        """bool[N]: rows of slots that have a greatest number."""
        kept: NDArray[np.bool_] = self._capped[self._slots(headers)]
        return kept

    def rank(self, headers: Headers, now_s: int) -> NDArray[np.float64]:
        """float64[N]: of the rows of one slot the smallest go first."""
        slots = self._slots(headers)
        touched = headers["last_touched_s"].astype(np.float64)
        by_score = np.isfinite(self._half_life[slots])
        return np.where(by_score, self._score(headers, now_s), touched)

    def rows_max(self, slot: int) -> int:
        """The greatest number of rows of a slot that has one."""
        most = self._rules[slot].rows_max
        assert most is not None
        return most

    def _score(self, headers: Headers, now_s: int) -> NDArray[np.float64]:
        age = np.maximum(0, now_s - headers["last_touched_s"].astype(np.int64))
        decay = np.exp2(-age / self._half_life[self._slots(headers)])
        score: NDArray[np.float64] = headers["count"].astype(np.float64) * decay
        return score

    def _slots(self, headers: Headers) -> NDArray[np.int64]:
        numbers = headers["slot"].astype(np.int64)
        return np.where(numbers < len(self._rules), numbers, 0)


class Sweep:
    """One walk over a store, or two where a slot has a greatest number of rows.

    Nothing of it is durable: what a crash interrupts begins anew.
    """

    def __init__(
        self, policy: ExpiryPolicy, layout: RowLayout, row_bytes: int, now_s: int, *, dry_run: bool
    ) -> None:
        self.found = Expired()
        self.finished = False
        self._rules = Rules(policy, layout)
        self._layout, self._row_bytes, self._now_s = layout, row_bytes, now_s
        self._dry_run = dry_run
        self._cursor = 0
        self._ranking: list[Headers] | None = [] if self._rules.ranks else None
        self._over: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._over_ranks: NDArray[np.float64] = np.empty(0, np.float64)
        self._gone: list[NDArray[np.uint64]] = []

    def step(self, rows: Sweepable, limit: int) -> Headers:
        """Walk `limit` rows on; returns the headers of those that went."""
        headers, upto = rows.headers_after(self._cursor, limit)
        if self._ranking is not None:
            self._rank(headers)
            gone = headers[:0]
        else:
            gone = self._take(headers)
            if len(gone) and not self._dry_run:
                rows.drop(gone["key"])
        if upto is None:
            self._end_of_walk()
        else:
            self._cursor = upto
        return gone

    def _rank(self, headers: Headers) -> None:
        assert self._ranking is not None
        stays = self._rules.due(headers, self._now_s) == _STAYS
        self._ranking.append(headers[stays & self._rules.capped(headers)])

    def _end_of_walk(self) -> None:
        if self._ranking is None:
            self.finished = True
            self.found.keys = np.concatenate([self._over[:0], *self._gone])
            return
        ranked: Headers = np.concatenate(self._ranking)
        self._ranking, self._cursor = None, 0
        ranks = self._rules.rank(ranked, self._now_s)
        over = np.zeros(len(ranked), np.bool_)
        for slot in np.unique(ranked["slot"]).tolist():
            of_slot = np.flatnonzero(ranked["slot"] == slot)
            surplus = len(of_slot) - self._rules.rows_max(slot)
            if surplus > 0:
                order = np.lexsort((ranked["key"][of_slot], ranks[of_slot]))
                over[of_slot[order[:surplus]]] = True
        self._over, self._over_ranks = ranked["key"][over], ranks[over]  # in order of key

    def _take(self, headers: Headers) -> Headers:
        verdict = self._rules.due(headers, self._now_s)
        if len(self._over) and len(headers):
            at = np.minimum(np.searchsorted(self._over, headers["key"]), len(self._over) - 1)
            surplus = (self._over[at] == headers["key"]) & (verdict == _STAYS)
            # Touched since it was ranked: it may not be among the last any more.
            surplus &= self._rules.rank(headers, self._now_s) <= self._over_ranks[at]
            verdict[surplus] = REASONS.index("rows_max")
        gone: Headers = headers[verdict != _STAYS]
        found = self.found
        found.examined += len(headers)
        found.rows += len(gone)
        found.bytes += len(gone) * self._row_bytes
        self._gone.append(gone["key"].copy())
        self._count(gone, verdict[verdict != _STAYS])
        return gone

    def _count(self, gone: Headers, reasons: NDArray[np.uint8]) -> None:
        for number in np.unique(gone["slot"]).tolist():
            of_slot = gone["slot"] == number
            slot = self.found.by_slot.setdefault(self._layout.slot_name(number), SlotExpired())
            slot.rows += int(of_slot.sum())
            for n, reason in enumerate(REASONS):
                setattr(slot, reason, getattr(slot, reason) + int((reasons[of_slot] == n).sum()))
            oldest = int(gone["last_touched_s"][of_slot].min())
            known = slot.oldest_touched_s
            slot.oldest_touched_s = oldest if known is None else min(known, oldest)

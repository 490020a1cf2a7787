"""Which values earn a row: counted per slot over a sliding window, in bounded memory.

A key without a row is a candidate. Candidates lie in sets of WAYS entries, with their whole key and
one count for each pane of the window; a full set forgets the candidate that was seen least. So a
value may be admitted late, when its set was crowded, but never before its threshold: a counting
sketch of the same size would let strangers' counts in.

    entry = uint64[3]:  key  |  pane (high 32 bits), slot number (low 16)  |  PANES x 16-bit count

The window is the newest PANES panes of `window_s` / PANES seconds of the caller's clock, so an
occurrence counts for at least (PANES - 1) / PANES of the window and never for longer than it.

Nothing here depends on anything but the calls: after a restart the same keys are admitted. What
changed is staged with each commit, a set at a time; once these changes outweigh the table it is
written anew, whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import StoreCorrupt, StoreMisuse
from embedding_store.kernel import kernel
from embedding_store.layout import RowLayout
from embedding_store.state import StagedState

WAYS: Final = 8
PANES: Final = 4
COUNT_MAX: Final = 65535
LOAD: Final = 0.75
"""Of the table when `keys_max` candidates are in it; full sets forget before that."""
SPACE: Final = "admission"
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_CHUNK_BYTES: Final = 1 << 20
_POLICIES: Final = ("always", "count", "probability")
_ALWAYS, _COUNT, _PROBABILITY = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRule:
    """When a value of one slot gets its row."""

    policy: Literal["always", "count", "probability"] = "always"
    """always = at first sight; count = at its `count`-th occurrence within the window; probability
    = each occurrence wins with this chance, drawn from the key and which occurrence it is."""
    count: int = 1
    probability: float = 1.0

    def __post_init__(self) -> None:
        if self.policy not in _POLICIES:
            raise StoreMisuse(
                f"unknown admission policy: policy=`{self.policy}` expected one of `{_POLICIES}`"
            )
        if not 1 <= self.count <= COUNT_MAX or not 0 < self.probability <= 1:
            raise StoreMisuse(
                f"admission needs 1 <= count <= {COUNT_MAX} and 0 < probability <= 1: "
                f"count=`{self.count}` probability=`{self.probability}`"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionPolicy:
    """The rules of a store's slots, and how much memory their candidates may take."""

    default: AdmissionRule = AdmissionRule()
    slots: Mapping[str, AdmissionRule] = field(default_factory=dict)
    """Slot -> its own rule."""
    window_s: int = 86_400
    keys_max: int = 1 << 20
    """Candidates remembered at a time, 24 bytes each over LOAD."""

    @property
    def admits_all(self) -> bool:
        rules = (self.default, *self.slots.values())
        return all(rule.policy == "always" for rule in rules)


class AdmissionFilter:
    """The candidates of one store, which `bind`s it when it opens. One thread at a time."""

    def __init__(self, policy: AdmissionPolicy) -> None:
        if policy.window_s < PANES or policy.keys_max < WAYS:
            raise StoreMisuse(
                f"admission needs a window of {PANES} s and {WAYS} keys or more: "
                f"window_s=`{policy.window_s}` keys_max=`{policy.keys_max}`"
            )
        self._pane_s = policy.window_s // PANES
        bits = max(1, int(policy.keys_max / LOAD / WAYS - 1).bit_length())
        self._table: NDArray[np.uint64] = np.zeros((1 << bits, WAYS, 3), np.uint64)
        self._changed: NDArray[np.uint8] = np.zeros(1 << bits, np.uint8)
        self._shift = np.uint64(64 - bits)
        self._pane = self._staged_pane = 0
        self._sequence = 0
        self._staged_bytes = 0
        self._obsolete: list[bytes] = []
        self._policy = policy
        self._rules([AdmissionRule()])

    def bind(self, layout: RowLayout, state: StagedState) -> None:
        """Take the slots' numbers and what the last commit held. Raises StoreMisuse for a rule of
        a slot that no row names, and StoreCorrupt."""
        self._rules(_by_number(self._policy, layout))
        self.recover(state.scan(SPACE))

    def stage(self, state: StagedState) -> None:
        """Stage what changed since the last commit."""
        for name, value in self.writes():
            if value is None:
                state.delete(SPACE, name)
            else:
                state.put(SPACE, name, value)

    def _rules(self, rules: list[AdmissionRule]) -> None:
        self._kinds = np.array([_POLICIES.index(r.policy) for r in rules], np.uint8)
        self._counts = np.array([r.count for r in rules], np.int64)
        # A draw is 53 bits, so that a probability is a float64 compared exactly.
        self._chances = np.array([int(r.probability * 2**53) for r in rules], np.uint64)
        self.refused: NDArray[np.int64] = np.zeros(len(rules), np.int64)
        """Distinct keys refused since opening, once per batch, by slot number."""

    def admit(
        self,
        keys: NDArray[np.uint64],
        slot_numbers: NDArray[np.uint16],
        counts: NDArray[np.int32],
        now_s: int,
    ) -> NDArray[np.bool_]:
        """bool[M] for distinct `keys` [M] without a row; `counts` [M]: occurrences in the batch.

        An admitted key is no candidate any more: its row has to come into being.
        """
        self._pane = max(self._pane, now_s // self._pane_s)
        numbers = np.where(slot_numbers < len(self._kinds), slot_numbers, 0)
        admitted = np.empty(len(keys), np.bool_)
        _admit(
            self._table,
            self._changed,
            self._shift,
            np.uint64(self._pane),
            keys,
            numbers.astype(np.uint16),
            counts,
            self._kinds,
            self._counts,
            self._chances,
            admitted,
        )
        np.add.at(self.refused, numbers[~admitted], 1)
        return admitted

    @property
    def candidates(self) -> int:
        """Keys in the table, those whose time has run out included."""
        return int((self._table[:, :, 0] != 0).sum())

    @property
    def memory_bytes(self) -> int:
        """Memory of the table."""
        return int(self._table.nbytes)

    def content(self) -> bytes:
        """Every byte that a restart must bring back."""
        return self._pane.to_bytes(8, "little") + self._table.tobytes()

    # -- durable state: a base, and what changed since ----------------------------------------

    def writes(self) -> list[tuple[bytes, bytes | None]]:
        """Records of the space `admission` to stage with the commit; None deletes.

        Only what changed since the last call; call it once per commit.
        """
        changed = np.flatnonzero(self._changed)
        if not len(changed) and self._sequence and self._pane == self._staged_pane:
            return []
        self._changed[changed] = 0
        self._staged_pane = self._pane
        if not self._sequence or self._staged_bytes > self._table.nbytes:
            return self._base()
        sets = changed.astype("<u4").tobytes() + self._table[changed].tobytes()
        self._staged_bytes += len(sets)
        self._sequence += 1
        value = self._pane.to_bytes(8, "little") + sets
        return [(b"change:" + self._sequence.to_bytes(8, "big"), value)]

    def _base(self) -> list[tuple[bytes, bytes | None]]:
        stale = [b"change:" + n.to_bytes(8, "big") for n in range(2, self._sequence + 1)]
        stale += self._obsolete
        self._obsolete = []
        self._sequence, self._staged_bytes = 1, 0
        data = self._table.tobytes()
        chunks = [data[at : at + _CHUNK_BYTES] for at in range(0, len(data), _CHUNK_BYTES)]
        head = json.dumps({**self._shape(), "pane": self._pane, "chunks": len(chunks)}).encode()
        return [
            *((name, None) for name in stale),
            (b"head", head),
            *((b"base:" + n.to_bytes(4, "big"), chunk) for n, chunk in enumerate(chunks)),
        ]

    def recover(self, records: Iterable[tuple[bytes, bytes]]) -> bool:
        """Take back what `writes` gave; `records` are the whole space in order of key.

        False = they are of another window or size, or there are none: candidates begin anew.
        Raises StoreCorrupt.
        """
        stored = dict(records)
        head = json.loads(stored.get(b"head", b"{}"))
        if {name: head.get(name) for name in self._shape()} != self._shape():
            self._obsolete = list(stored)
            return False
        base = b"".join(
            stored.get(b"base:" + n.to_bytes(4, "big"), b"") for n in range(head["chunks"])
        )
        if len(base) != self._table.nbytes:
            raise StoreCorrupt(f"the admission filter is incomplete: bytes=`{len(base)}`")
        self._table[:] = np.frombuffer(base, np.uint64).reshape(self._table.shape)
        self._pane, self._sequence, self._staged_bytes = int(head["pane"]), 1, 0
        set_bytes = self._table[0].nbytes
        while (
            change := stored.get(b"change:" + (self._sequence + 1).to_bytes(8, "big"))
        ) is not None:
            sets, rest = divmod(len(change) - 8, 4 + set_bytes)
            if rest:
                raise StoreCorrupt(f"a change of the admission filter is cut: bytes=`{rest}`")
            at = np.frombuffer(change, "<u4", sets, 8)
            self._table[at] = np.frombuffer(
                change, np.uint64, sets * set_bytes // 8, 8 + 4 * sets
            ).reshape(sets, *self._table.shape[1:])
            self._pane = int.from_bytes(change[:8], "little")
            self._staged_bytes += len(change) - 8
            self._sequence += 1
        self._staged_pane = self._pane
        return True

    def _shape(self) -> dict[str, int]:
        return {"format": 1, "sets": len(self._table), "ways": WAYS, "pane_s": self._pane_s}


def _by_number(policy: AdmissionPolicy, layout: RowLayout) -> list[AdmissionRule]:
    """The rule of every slot number, 0 = unnamed."""
    unknown = sorted(set(policy.slots) - set(layout.slots))
    if unknown:
        raise StoreMisuse(
            f"admission rules of slots that no row names: slots=`{unknown}` "
            f"expected among `{sorted(layout.slots)}`"
        )
    rules = [policy.default] * (1 + max(layout.numbers.values(), default=0))
    for slot, rule in policy.slots.items():
        rules[layout.slot_number(slot)] = rule
    return rules


@kernel
def _admit(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    table, changed, shift, pane, keys, numbers, counts, kinds, thresholds, chances, admitted
) -> None:
    for i in range(keys.shape[0]):
        number = numbers[i]
        if kinds[number] == _ALWAYS:
            admitted[i] = True
            continue
        at = np.int64((keys[i] * _MULTIPLIER) >> shift)
        entries = table[at]
        way = _way(entries, keys[i], pane)
        changed[at] = 1
        if entries[way, 0] != keys[i]:
            entries[way, 0] = keys[i]
            entries[way, 1] = (pane << np.uint64(32)) | np.uint64(number)
            entries[way, 2] = np.uint64(0)
        _advance(entries, way, pane)
        place = np.uint64(16) * (pane % np.uint64(PANES))
        before = (entries[way, 2] >> place) & np.uint64(COUNT_MAX)
        after = min(before + np.uint64(counts[i]), np.uint64(COUNT_MAX))
        entries[way, 2] += (after - before) << place
        if kinds[number] == _COUNT:
            admitted[i] = _total(entries[way, 2]) >= thresholds[number]
        else:
            admitted[i] = _wins(keys[i], pane, before, after, chances[number])
        if admitted[i]:
            entries[way] = np.uint64(0)


@kernel
def _way(entries, key, pane):  # type: ignore[no-untyped-def]
    """Where `key` is, or may be: its own entry, an empty one, or the one seen least of late."""
    chosen, least = 0, np.int64(-1)
    for way in range(entries.shape[0]):
        if entries[way, 0] == key:
            return way
    for way in range(entries.shape[0]):
        if entries[way, 0] == 0:
            return way
        _advance(entries, way, pane)
        total = _total(entries[way, 2])
        if least < 0 or total < least:
            chosen, least = way, total
    return chosen


@kernel
def _advance(entries, way, pane) -> None:  # type: ignore[no-untyped-def]
    """Forget the counts of panes that have left the window."""
    seen = entries[way, 1] >> np.uint64(32)
    steps = min(pane - seen, np.uint64(PANES))
    for step in range(steps):
        place = np.uint64(16) * ((seen + np.uint64(1) + np.uint64(step)) % np.uint64(PANES))
        entries[way, 2] &= ~(np.uint64(COUNT_MAX) << place)
    entries[way, 1] = (pane << np.uint64(32)) | (entries[way, 1] & np.uint64(0xFFFFFFFF))


@kernel
def _total(counts):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for pane in range(PANES):
        total += np.int64((counts >> np.uint64(16 * pane)) & np.uint64(COUNT_MAX))
    return total


@kernel
def _wins(key, pane, before, after, chance):  # type: ignore[no-untyped-def]
    """Whether any of the occurrences `before` + 1 .. `after` of this pane draws below `chance`."""
    for n in range(before, after):
        z = key ^ (pane * np.uint64(0xD6E8FEB86659FD93)) ^ (np.uint64(n) << np.uint64(40))
        z = (z + _MULTIPLIER) ^ ((z + _MULTIPLIER) >> np.uint64(30))
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        if (z ^ (z >> np.uint64(31))) >> np.uint64(11) < chance:
            return True
    return False

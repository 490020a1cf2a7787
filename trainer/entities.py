"""What is kept per user and per item beside its rows (store space `entity`).

Last-seen features (so that its vector can be recomputed from any state), the newest event that
reached it, and the time-decayed sum of cross representations. Layout of one record, little-endian:

    i64 features_event_ms | i64 event_ms | i64 produced_ms | i64 cross_event_ms
    i64 cross_produced_ms | i64 published_ms | i64 cross_published_ms | i64 cross_last_ms
    i64 cross_step | i64 cross_count | u32 C
    f32 cross_sum[C] | features (see `trainer/packed.py`)

A second space, `entity_row`, leads from the key of an entity's row (big-endian) to the entity: the
store knows rows by their hashes alone, and an expired row takes its entity along.

Entities that a batch touches lie open as columns, so that a batch costs a few array operations and
not thousands of Python ones. They stay open over commits until there are too many of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import add

import numpy as np
import numpy.typing as npt

from embedding_store.keys import row_keys
from embedding_store.store import EmbeddingStore
from trainer.decayed_sum import add_decayed, raise_to
from trainer.features import F32, I64
from trainer.packed import PackedRows, cut_rows

NEVER = -1
SPACE = "entity"
BY_ROW = "entity_row"
OPEN_MAX = 200_000
"""More are put away at the next commit: some 150 MB with a CR of 128 numbers."""

_TIMES = (
    "features_event_ms",
    "event_ms",
    "produced_ms",
    "cross_event_ms",
    "cross_produced_ms",
    "published_ms",
    "cross_published_ms",
    "cross_last_ms",
)
_HEAD = np.dtype(
    [
        *((name, "<i8") for name in (*_TIMES, "cross_step", "cross_count")),
        ("width", "<u4"),
    ]
)
_UNSEEN = (*[NEVER] * len(_TIMES), NEVER, 0, 0)
LAYOUT = 2
"""Of a record; a store with another is refused at start (`trainer.durable`)."""
_FIRST_CAPACITY = 1024

EntityKey = bytes
"""`user:` or `item:` and the id in UTF-8."""


def row_names(keys: Sequence[EntityKey]) -> list[bytes]:
    """The key of each entity's own row, big-endian."""
    split = [key.partition(b":") for key in keys]
    names = np.empty(len(keys), ">u8")
    for side in {side for side, _, _ in split}:
        at = [n for n, (own, _, _) in enumerate(split) if own == side]
        ids = [split[n][2].decode("utf-8", "surrogatepass") for n in at]
        names[at] = row_keys(f"{side.decode()}_id", ids)
    whole = names.tobytes()
    return [whole[n : n + 8] for n in range(0, len(whole), 8)]


class Entities:
    """Entities of one store, by number while open; changes are staged at `stage`."""

    def __init__(self, store: EmbeddingStore, cross_dim: int) -> None:
        self._store = store
        self._cross_dim = cross_dim
        self.head = np.zeros(_FIRST_CAPACITY, _HEAD)
        """[E] of the open ones: times in ms (NEVER = not yet), the count behind CR, and the step
        of the model that made the newest activation in it."""
        self.cross: F32 = np.zeros((_FIRST_CAPACITY, cross_dim), np.float32)
        """[E, C] decayed sums, as of `cross_last_ms`; anything where the count is 0."""
        self._batch_of: I64 = np.full(_FIRST_CAPACITY, NEVER, np.int64)
        self._row_of: I64 = np.zeros(_FIRST_CAPACITY, np.int64)
        self._changed = np.zeros(_FIRST_CAPACITY, bool)
        self._forget()

    def _forget(self) -> None:
        """Close all; their places in the columns are the next ones'."""
        self._numbers: dict[EntityKey, int] = {}
        self._features: list[bytes] = []
        self._batches: list[PackedRows] = []
        self._new: set[int] = set()
        self._batch_of[:] = NEVER
        self._changed[:] = False

    def open(self, keys: Sequence[EntityKey]) -> I64:
        """[N] numbers of `keys`, which may repeat. One read of the disk for all that are not open;
        what was never seen is new."""
        numbers = self._numbers
        absent = [key for key in dict.fromkeys(keys) if key not in numbers]
        if absent:
            raws = self._store.get_many(SPACE, absent)
            first = len(numbers)
            self._grow(first + len(absent))
            fresh = slice(first, first + len(absent))
            self.head[fresh] = _UNSEEN
            self._features += [b""] * len(absent)
            for number, (key, raw) in enumerate(zip(absent, raws, strict=True), first):
                numbers[key] = number
                if raw is not None:
                    self._load(number, raw)
                else:
                    self._new.add(number)
        return np.fromiter(map(numbers.__getitem__, keys), np.int64, len(keys))

    def observe(
        self,
        numbers: I64,
        *,
        event_ms: I64,
        newest_ms: I64,
        produced_ms: I64,
        packed: PackedRows | None,
        first: npt.NDArray[np.bool_],
        cross: F32 | None,
        step: int,
        half_life_ms: int,
    ) -> None:
        """One side of a batch of B: whose rows they are, and what reached them; [B] each.

        Features and CR [B, C], made at `step`, are taken from `first` sights alone. Of two with the
        same event time the later row's features stay. `packed` None: nothing will be recomputed
        from them.
        """
        head = self.head
        raise_to(head["event_ms"], numbers, newest_ms)
        raise_to(head["produced_ms"], numbers, produced_ms)
        self._changed[numbers] = True
        rows = np.flatnonzero(first)
        if not rows.size:
            return
        if packed is not None:
            self._see(numbers[rows], event_ms[rows], rows, packed)
        if cross is not None:
            raise_to(head["cross_event_ms"], numbers[rows], newest_ms[rows])
            raise_to(head["cross_produced_ms"], numbers[rows], produced_ms[rows])
            head["cross_step"][numbers[rows]] = step
            every = len(rows) == len(numbers)  # as a rule: `cross` need not be copied
            seen = cross if every else cross[rows]
            self._add_cross(numbers[rows], event_ms[rows], seen, half_life_ms)

    def _see(self, numbers: I64, event_ms: I64, rows: I64, packed: PackedRows) -> None:
        """Keep where the newest features of each entity are; packing them waits for the commit,
        since a user seen ten times between two commits needs it once."""
        order = np.lexsort((rows, event_ms, numbers))
        last = np.flatnonzero(np.r_[numbers[order][1:] != numbers[order][:-1], True])
        chosen = order[last]
        chosen = chosen[event_ms[chosen] >= self.head["features_event_ms"][numbers[chosen]]]
        at = numbers[chosen]
        self.head["features_event_ms"][at] = event_ms[chosen]
        self._batch_of[at] = len(self._batches)
        self._row_of[at] = rows[chosen]
        self._batches.append(packed)

    def _add_cross(self, numbers: I64, event_ms: I64, cross: F32, half_life_ms: int) -> None:
        head = self.head
        add_decayed(
            self.cross,
            head["cross_last_ms"],
            head["cross_count"],
            numbers,
            event_ms,
            np.ascontiguousarray(cross),
            half_life_ms,
        )

    def packed(self, numbers: I64) -> list[bytes]:
        """Open entities' features as bytes; empty for one that was never seen with features."""
        batches = self._batch_of[numbers]
        for batch in np.unique(batches[batches != NEVER]).tolist():
            here = numbers[batches == batch]
            raws = self._batches[batch].rows(self._row_of[here].tolist())
            for number, raw in zip(here.tolist(), raws, strict=True):
                self._features[number] = raw
        self._batch_of[numbers] = NEVER
        return [self._features[number] for number in numbers.tolist()]

    def stage(self) -> None:
        """Stage every entity that changed since the last commit."""
        changed = np.flatnonzero(self._changed[: len(self._numbers)])
        keys = list(self._numbers)  # in order of number
        self.head["width"][changed] = np.where(
            self.head["cross_count"][changed] > 0, self._cross_dim, 0
        )
        records = map(add, self._fixed(changed), self.packed(changed))
        touched = map(keys.__getitem__, changed.tolist())
        self._store.put_many(SPACE, touched, records)
        fresh = self._fresh()
        self._store.put_many(BY_ROW, row_names(fresh), fresh)
        self._new = {number for number in self._new if not self._changed[number]}
        self._changed[:] = False
        self._batches = []
        if len(keys) > OPEN_MAX:
            self._forget()
        self._batch_of[:] = NEVER

    def _fixed(self, numbers: I64) -> Iterator[bytes]:
        """What precedes the features in each one's record."""
        heads = self.head[numbers].view(np.uint8).reshape(len(numbers), _HEAD.itemsize)
        counted = self.head["width"][numbers] > 0
        sums = self.cross[numbers[counted]].astype("<f4", copy=False).view(np.uint8)
        bare = iter(cut_rows(heads[~counted]))
        summed = iter(cut_rows(np.concatenate([heads[counted], sums], axis=1)))
        return (next(summed) if has_sum else next(bare) for has_sum in counted.tolist())

    def everything(self) -> Iterator[tuple[EntityKey, bool]]:
        """(key, whether it has a CR) of every entity, as last staged; those that changed since are
        touched anyway."""
        for key, raw in self._store.scan(SPACE):
            yield key, bool(np.frombuffer(raw, _HEAD, 1)[0]["cross_count"])

    def of_rows(self, row_keys: Sequence[int]) -> list[EntityKey]:
        """The entities whose rows have these keys, those not staged yet among them; rows of none
        are passed over."""
        names = [key.to_bytes(8, "big") for key in row_keys]
        fresh = self._fresh()
        unstaged = dict(zip(row_names(fresh), fresh, strict=True))
        found = zip(names, self._store.get_many(BY_ROW, names), strict=True)
        of_each = (unstaged.get(name) if key is None else key for name, key in found)
        return [key for key in of_each if key is not None]

    def _fresh(self) -> list[EntityKey]:
        """New ones that are not staged yet, in order of number."""
        keys = list(self._numbers)
        return [keys[number] for number in sorted(self._new) if self._changed[number]]

    def remove(self, keys: Sequence[EntityKey]) -> None:
        """Forget entities, durably with the next commit. One that is seen again is new."""
        numbers = self.open(keys)
        self.head[numbers] = _UNSEEN
        self.cross[numbers] = 0
        self._changed[numbers] = False
        self._batch_of[numbers] = NEVER
        for key, row, number in zip(keys, row_names(keys), numbers.tolist(), strict=True):
            self._features[number] = b""
            self._new.add(number)
            self._store.delete(SPACE, key)
            self._store.delete(BY_ROW, row)

    def mark_changed(self, numbers: I64) -> None:
        """Their heads were written from outside: stage them, too."""
        self._changed[numbers] = True

    def _load(self, number: int, raw: bytes) -> None:
        self.head[number] = np.frombuffer(raw, _HEAD, 1)[0]
        width = int(self.head["width"][number])
        end = _HEAD.itemsize + 4 * width
        if width:
            self.cross[number] = np.frombuffer(raw, "<f4", width, _HEAD.itemsize)
        self._features[number] = raw[end:]

    def _grow(self, count: int) -> None:
        capacity = len(self.head)
        if count <= capacity:
            return
        used, capacity = len(self._numbers), max(2 * capacity, count)
        for name in ("head", "cross", "_batch_of", "_row_of", "_changed"):
            column = getattr(self, name)
            grown = np.zeros((capacity, *column.shape[1:]), column.dtype)  # untouched, so unbacked
            grown[:used] = column[:used]
            setattr(self, name, grown)
        self._batch_of[used:] = NEVER

"""The hot tier: rows side by side in memory, found by the index, replaced by score when it is full.

A row's words are the bytes that go to disk, so loading, spilling and committing are copies; what
the slab must know of a row stands in its flags word (`flags.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedding_store import bfloat16, flags, optimizers
from embedding_store.errors import StoreMisuse
from embedding_store.eviction import Choice, Eviction
from embedding_store.flags import CHANGED, NO_COUNTS, PENDING
from embedding_store.index import Index
from embedding_store.kernel import kernel
from embedding_store.lanes import copy_floats
from embedding_store.layout import SetSpec
from embedding_store.pages import zeros
from embedding_store.prefetch import prefetch_words, rows_ahead
from embedding_store.row import (
    COUNT_WORD,
    FLAGS_WORD,
    HEADER,
    HEADER_WORDS,
    SLOT_BITS,
    Headers,
    RowFormat,
    SetPlace,
)
from embedding_store.row_copies import copy_rows, move_rows

if TYPE_CHECKING:
    from torch import Tensor


class Slab:
    """`capacity` rows. A row is pinned while it belongs to one of the two newest batches."""

    def __init__(self, form: RowFormat, capacity: int, eviction: Eviction = "clock") -> None:
        self._form = form
        self.capacity = capacity
        self._choice = Choice(capacity, eviction)
        self._words: NDArray[np.float32] = zeros((capacity, self.host_words(form)), np.float32)
        self._header: NDArray[np.uint32] = self._words.view(np.uint32)
        self._index = Index(capacity)
        self._hyper = {
            place.vector_word: optimizers.hyperparameters(place.spec)
            for place in form.places.values()
        }
        # Every dirty row is in here at least once; also slots that were dirty and then evicted.
        self._dirty: NDArray[np.int32] = np.empty(capacity + capacity // 4 + 1024, np.int32)
        self._dirty_many = 0
        self._pending: NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self._pinned: list[NDArray[np.int64]] = []  # slots of the two newest batches
        self._newest = 0
        self._unmarked: dict[int, NDArray[np.int64]] = {}  # of these, by batch: not yet in flags
        self._free: list[int] = []  # below `used`, given up by `drop`
        self.used = 0
        self.moves = 0
        """How often rows came or went: what `find` told before the last time may not hold."""

    @staticmethod
    def host_words(form: RowFormat) -> int:
        """Of a row, how many words lie in this process's memory, the header's first."""
        return form.words

    def __len__(self) -> int:
        """Rows that are here."""
        return self.used - len(self._free)

    def pin(self, slots: NDArray[np.int64], batch: int) -> bool:
        """The rows of `slots`, which `find` just told (-1 = not here), stay there as long as
        `batch` is one of the two newest. False if two such batches cannot both fit."""
        if len(slots) > self.capacity // 2:
            return False
        self._mark_used(batch - 2)  # a batch that did not learn, and cannot any more
        self._newest = batch
        self._unmarked[batch] = slots
        self._pinned = [*self._pinned[-1:], slots]
        self._choice.used(slots, batch)
        return True

    def _mark_used(self, newest: int) -> None:
        """Let the flags tell of every batch up to `newest` which rows it uses.

        Else they tell when the batch learns: a pass over cold lines less.
        """
        now = flags.stamp(self._newest)
        for batch in [each for each in self._unmarked if each <= newest]:
            flags.use(self._header, self._unmarked.pop(batch), flags.stamp(batch), now)

    def make_room(
        self, rows: int, batch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8], int]:
        """(`rows` empty slots, rows that had to go and are not on disk, their marks, evicted)."""
        self.moves += 1
        reused = min(rows, len(self._free))
        fresh = reused + min(rows - reused, self.capacity - self.used)
        slots = np.empty(rows, np.int64)
        slots[:reused] = self._free[len(self._free) - reused :]
        del self._free[len(self._free) - reused :]
        slots[reused:fresh] = np.arange(self.used, self.used + fresh - reused)
        self._header[slots[:fresh], FLAGS_WORD] = flags.stamp(batch)  # now pinned
        self.used += fresh - reused
        victims = slots[fresh:]
        self._choose(victims, slots[:fresh], batch)
        keys, marks = np.empty(len(victims), np.uint64), np.empty(len(victims), np.uint8)
        flags.leave(self._header, self._pending, victims, keys, marks)
        self._index.delete(keys)
        kept = marks != 0
        return slots, self.rows(victims[kept]), marks[kept], len(victims)

    def _choose(self, victims: NDArray[np.int64], given: NDArray[np.int64], batch: int) -> None:
        """Fill `victims` with the slots of rows that have to go, pinned from now on."""
        if not len(victims):
            return
        self._mark_used(batch)
        now = flags.stamp(batch)
        found = self._choice.fill(victims, self._header, now)
        if found < len(victims):  # rows unused for a multiple of 8192 batches look pinned
            self._unpin_old(now, [*self._pinned, given, victims[:found]])
            self._choice.fill(victims[found:], self._header, now)

    def _unpin_old(self, now: np.uint32, pinned: list[NDArray[np.int64]]) -> None:
        """Give every row but the `pinned` an age that no pinned row has."""
        old = np.ones(self.capacity, np.bool_)
        for slots in pinned:
            old[slots[slots >= 0]] = False
        words = self._header[:, FLAGS_WORD]
        aged = flags.stamp((int(now) >> flags.BATCH_SHIFT) - 2)
        words[old] = (words[old] & np.uint32(flags.BELOW_BATCH)) | aged

    def admit(
        self,
        keys: NDArray[np.uint64],
        slots: NDArray[np.int64],
        rows: NDArray[np.float32],
        marks: NDArray[np.uint8],
        batch: int,
    ) -> None:
        """Put `rows` into `slots` from `make_room`; `marks` CHANGED, PENDING or 0 = as on disk.

        What the slab notes of a row is written into `rows`, too.
        """
        self.moves += 1
        rows.view(np.uint32)[:, FLAGS_WORD] |= np.uint32(flags.REFERENCE) | flags.stamp(batch)
        self._put(slots, rows)
        self._index.assign(keys, slots)
        self._choice.used(slots, batch)
        self.learn(slots[marks == CHANGED], NO_COUNTS, 0, batch)
        self._pending[slots[marks == PENDING]] = PENDING

    def _put(self, slots: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        move_rows(rows, np.arange(len(rows)), self._words, slots)

    def drop(self, keys: NDArray[np.uint64]) -> None:
        """Forget rows for good, changed or not; keys that are not here are passed over.

        Lookups before this may not be used any more.
        """
        self.moves += 1
        slots = self.find(keys)
        slots = slots[slots >= 0]
        self._index.delete(keys)
        self._header[slots] = 0
        self._pending[slots] = 0
        self._free.extend(slots.tolist())

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Slots int64[N], -1 where not here. Pins nothing and counts nothing."""
        return self._index.find(keys)

    def keys(self, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        pairs = np.ascontiguousarray(self._header[slots, :2])
        return pairs.view(np.uint64).ravel()

    def slot_numbers(self, slots: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Of the layout's slots, as the rows' headers have them; 0 for -1."""
        numbers: NDArray[np.uint16] = self._header[slots, FLAGS_WORD].astype(np.uint16)
        numbers[slots < 0] = 0
        return numbers

    def rows(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Copies of whole rows float32[N, words], as they go to disk."""
        copied = np.empty((len(slots), self._words.shape[1]), np.float32)
        copy_rows(self._words, slots, copied)
        copied.view(np.uint32)[:, FLAGS_WORD] &= np.uint32(SLOT_BITS)
        return copied

    def headers(self, slots: NDArray[np.int64]) -> Headers:
        """Copies of the headers structured [N], as they go to disk."""
        words = np.ascontiguousarray(self._header[slots, :HEADER_WORDS])
        words[:, FLAGS_WORD] &= np.uint32(SLOT_BITS)
        headers: Headers = words.view(np.dtype(HEADER)).reshape(len(slots))
        return headers

    def gather(self, place: SetPlace, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """The set's vectors float32[N, D]; zeros for -1."""
        vectors = np.empty((len(slots), place.spec.dim), np.float32)
        kernel = _gather if place.spec.dtype == "float32" else bfloat16.gather
        kernel(self._words, slots, place.vector_word, vectors)
        return vectors

    def gather_tensor(self, place: SetPlace, slots: NDArray[np.int64]) -> Tensor:
        """The same where the vectors lie, if that is a device of torch's."""
        raise StoreMisuse(
            f"no tensors, open the store with a device: set=`{place.spec}` rows=`{len(slots)}`"
        )

    def update(
        self, place: SetPlace, slots: NDArray[np.int64], grad: NDArray[np.float32] | Tensor
    ) -> int:
        """The set's optimizer in place; -1 is passed over. Call `learn` on the rows before.

        Returns how many rows were left alone since their step would not be finite.
        """
        spec, hyper, given = place.spec, self._hyper[place.vector_word], np.ascontiguousarray(grad)
        if spec.dtype == "float32":
            return optimizers.step(
                spec, self._words, slots, place.vector_word, place.state_word, given, hyper
            )
        random = self._random(place, slots)
        first, state = place.vector_word, place.state_word
        return step_halves(spec, self._words, slots, first, state, given, hyper, random)

    def learn_and_update(  # noqa: PLR0917
        self,
        place: SetPlace,
        every: NDArray[np.int64],
        slots: NDArray[np.int64],
        grad: NDArray[np.float32] | Tensor,
        counts: NDArray[np.int32],
        now_s: int,
        batch: int,
    ) -> int:
        """`learn` on `every` row of a batch, `update` on those `slots` that have the set: in one
        pass over the rows where these are the same."""
        spec = place.spec
        rowwise = spec.dtype == "float32" and spec.optimizer in {"rowwise_adagrad", "sgd"}
        if slots is not every or not rowwise:
            self.learn(every, counts, now_s, batch)
            return self.update(place, slots, grad)
        learning = self._learning(len(every), counts, now_s, batch)
        skipped, self._dirty_many = optimizers.rowwise(
            *(self._words, slots, place.vector_word, place.state_word),
            *(np.ascontiguousarray(grad), self._hyper[place.vector_word]),
            *(spec.optimizer == "rowwise_adagrad", (self._header, *learning)),
        )
        return int(skipped)

    def _random(self, place: SetPlace, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Where a row's rounding bits begin: by key, set and count, so that a run can be repeated.

        Wherever the row lies, and whatever else is in its batch.
        """
        counts = self._header[slots, COUNT_WORD].astype(np.uint64)
        mixed: NDArray[np.uint64] = self.keys(slots) ^ (counts << np.uint64(17))
        return mixed ^ np.uint64(place.seed)

    def learn(
        self, slots: NDArray[np.int64], counts: NDArray[np.int32], now_s: int, batch: int
    ) -> None:
        """Rows of `batch` are about to change: mark them dirty and used, advance their headers by
        `counts` [N]. NO_COUNTS leaves counts and times; -1 is passed over.
        """
        learning = self._learning(len(slots), counts, now_s, batch)
        self._dirty_many = flags.learn(self._header, slots, *learning)

    def _learning(
        self, rows: int, counts: NDArray[np.int32], now_s: int, batch: int
    ) -> tuple[NDArray[np.int32], np.uint32, np.uint32, np.uint32, NDArray[np.int32], int]:
        """What `flags.learn` takes after the slots, with room for so many dirty `rows` more."""
        if len(counts):  # every row of the batch: this is its first update
            self._unmarked.pop(batch, None)
        self._reserve_dirty(rows)
        stamp, now = flags.stamp(batch), flags.stamp(self._newest)
        return counts, np.uint32(now_s), stamp, now, self._dirty, self._dirty_many

    def _reserve_dirty(self, rows: int) -> None:
        """Room for the slots of so many rows more."""
        if self._dirty_many + rows > len(self._dirty):
            self._dirty_many = flags.compact(self._header, self._dirty, self._dirty_many)
            missing = self._dirty_many + rows - len(self._dirty)
            if missing > 0:
                self._dirty = np.concatenate([self._dirty, np.empty(missing, np.int32)])

    def dirty_slots(self) -> NDArray[np.int64]:
        """Slots int64[N] of every row that differs from the disk."""
        self._dirty_many = flags.compact(self._header, self._dirty, self._dirty_many)
        return self._dirty[: self._dirty_many].astype(np.int64)

    def unsaved_slots(self) -> NDArray[np.int64]:
        """Slots int64[N] of every row that is changed or pending."""
        return np.union1d(self.dirty_slots(), np.flatnonzero(self._pending[: self.used]))

    def take(self, slots: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copy whole rows to `out` float32[N, words], as they go to disk."""
        copy_rows(self._words, slots, out)
        out.view(np.uint32)[:, FLAGS_WORD] &= np.uint32(SLOT_BITS)

    def commit_begins(self, slots: NDArray[np.int64]) -> None:
        """`slots`, all that differ from the disk, are pending from here on."""
        flags.commit_begins(self._header, self._pending, slots)
        self._dirty_many = 0

    def committed(self) -> None:
        """What was pending is on disk now."""
        self._pending[: self.used] = 0


def make_slab(form: RowFormat, capacity: int, eviction: Eviction, device: str) -> Slab:
    """Rows in this process's memory ("memory"), or in tensors on a `device` of torch."""
    if device == "memory":
        return Slab(form, capacity, eviction)
    from embedding_store.device import DeviceSlab  # only here: torch is not the store's otherwise

    return DeviceSlab(form, capacity, eviction, device)


def step_halves(  # noqa: PLR0917
    spec: SetSpec,
    words: NDArray[np.float32],
    slots: NDArray[np.int64],
    first: int,
    state: int,
    grad: NDArray[np.float32],
    hyper: NDArray[np.float32],
    random: NDArray[np.uint64],
) -> int:
    """`optimizers.step` on a bfloat16 set: widened beside the rows, stepped, rounded back."""
    beside = np.empty((len(slots), spec.dim + spec.state_floats), np.float32)
    vectors = np.empty((len(slots), spec.dim), np.float32)
    bfloat16.gather(words, slots, first, vectors)
    states, there = slice(state, state + spec.state_floats), slots >= 0
    beside[:, : spec.dim] = vectors
    beside[:, spec.dim :] = words[slots, states]
    at = np.where(there, np.arange(len(slots)), -1)
    left = optimizers.step(spec, beside, at, 0, spec.dim, grad, hyper)
    words[slots[there], states] = beside[there, spec.dim :]
    bfloat16.scatter(words, slots, first, np.ascontiguousarray(beside[:, : spec.dim]), random)
    return left


@kernel
def _gather(words, slots, first, vectors) -> None:  # type: ignore[no-untyped-def]
    stride, dim = np.uint64(words.shape[1]), np.uint64(vectors.shape[1])
    flat, into = words.reshape(-1), vectors.reshape(-1)
    end = first + vectors.shape[1]
    ahead = rows_ahead(first, end)
    for i in range(slots.shape[0]):
        if i + ahead < slots.shape[0]:
            prefetch_words(words, slots[i + ahead], first, end)
        to = np.uint64(i) * dim
        if slots[i] < 0:
            for d in range(dim):
                into[to + d] = np.float32(0)
            continue
        at = np.uint64(slots[i]) * stride + np.uint64(first)
        copy_floats(into, to, flat, at, dim)

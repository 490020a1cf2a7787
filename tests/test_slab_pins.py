"""Which rows of a full slab may go: never those of the two newest batches, then the least used."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedding_store.distinct import Deduplicator
from embedding_store.flags import CHANGED, DIRTY, PENDING, leave
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.row import RowFormat
from embedding_store.slab import Slab

FORM = RowFormat(RowLayout(sets={"shared": SetSpec(dim=2, optimizer="rowwise_adagrad")}))
PLACE = FORM.place("shared")

ids_of_a_batch = st.lists(st.integers(1, 18), min_size=3, max_size=6)


class _Batch:
    """A look-up in a bare slab: misses get fresh rows, as `Tiers` gives them."""

    def __init__(self, slab: Slab, ids: list[int], number: int) -> None:
        self.slab, self.number = slab, number
        found = Deduplicator()(np.array(ids, np.uint64))
        slots = slab.find(found.keys)
        assert slab.pin(slots, number)
        self.keys, self.slots, self.counts = found.keys, slots, found.counts
        missed = np.flatnonzero(slots < 0)
        if len(missed):
            keys = self.keys[missed]
            slots, *_ = slab.make_room(len(missed), number)
            rows = FORM.fresh(keys, np.zeros(len(keys), np.uint16), 0)
            slab.admit(keys, slots, rows, np.full(len(keys), CHANGED, np.uint8), number)
            self.slots[missed] = slots

    def learn(self, now_s: int = 0) -> None:
        gradient = np.ones((len(self.keys), 2), np.float32)
        self.slab.learn_and_update(
            PLACE, self.slots, self.slots, gradient, self.counts, now_s, self.number
        )


@given(
    st.lists(
        st.tuples(
            ids_of_a_batch,
            st.sampled_from(["never", "at once", "late"]),
            st.sampled_from([0, 0, 0, 8189, 8190, 8191, 8192]),  # flags count batches mod 8192
        ),
        min_size=6,
        max_size=20,
    )
)
def test_rows_of_the_two_newest_batches_stay_where_they_are(
    steps: list[tuple[list[int], str, int]],
) -> None:
    slab, number = Slab(FORM, 12), 2
    newest: list[_Batch] = []
    late: _Batch | None = None
    for ids, learns, unseen in steps:  # and how many batches elsewhere came before it
        number += 1 + unseen
        if unseen:
            newest, late = [], None
        newest = [*newest[-1:], _Batch(slab, ids, number)]
        if late is not None:
            late.learn()
        late = newest[-1] if learns == "late" else None
        if learns == "at once":
            newest[-1].learn()
        for batch in newest:
            assert slab.find(batch.keys).tolist() == batch.slots.tolist()
            assert slab.keys(batch.slots).tolist() == batch.keys.tolist()


def test_rows_that_many_batches_used_outlast_those_of_one() -> None:
    """Whether those batches learnt or only looked; each counts once."""
    for learning in (True, False):
        slab, number = Slab(FORM, 8), 2
        for ids in ([1, 2], [3, 4], [1, 2], [5, 6], [1, 2], [7, 8]):
            number += 1
            batch = _Batch(slab, ids, number)
            for _ in range(3 if learning else 0):
                batch.learn()
        for ids in ([11], [12], [13], [14]):  # of the six others two are pinned at first
            number += 1
            batch = _Batch(slab, ids, number)
            if learning:
                batch.learn()
        assert (slab.find(np.array([1, 2], np.uint64)) >= 0).all()
        assert (slab.find(np.array([3, 4, 5, 6], np.uint64)) < 0).all()


def test_a_batch_that_learns_late_leaves_a_row_to_the_next() -> None:
    slab = Slab(FORM, 8, "time")
    _Batch(slab, [21, 22, 23, 24], 3).learn(100)
    _Batch(slab, [25, 26, 27], 4).learn(100)
    first = _Batch(slab, [1], 5)
    second = _Batch(slab, [1, 4], 6)  # evicts, so its use of row 1 is noted by now
    first.learn()
    _Batch(slab, [31], 7)  # row 1 has the oldest time of all
    assert slab.find(second.keys).tolist() == second.slots.tolist()


def test_rows_that_leave_take_their_marks_along() -> None:
    header, pending = np.zeros((4, 6), np.uint32), np.array([PENDING, 0, PENDING, 0], np.uint8)
    header.view(np.uint64)[:, 0] = [2**63 + 1, 2, 3, 2**32 + 4]
    header[1, 5] = header[2, 5] = DIRTY | 7
    slots = np.array([3, 0, 2])
    keys, marks = np.zeros(3, np.uint64), np.zeros(3, np.uint8)
    leave(header, pending, slots, keys, marks)
    assert keys.tolist() == [2**32 + 4, 2**63 + 1, 3]
    assert marks.tolist() == [0, PENDING, CHANGED]  # changed since the commit began: that counts
    assert not pending.any(), "whoever gets the slot is not of that commit"

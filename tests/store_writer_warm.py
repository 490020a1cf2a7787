"""Preloaded by the crash tests' fork server: kernels loaded once, not by every child.

RocksDB stays shut here: its threads would not survive the fork.
"""

from __future__ import annotations

import numpy as np

import tests.store_writer  # noqa: F401 - the children's own module
from embedding_store.distinct import Deduplicator
from embedding_store.flags import NO_COUNTS
from embedding_store.row import RowFormat
from embedding_store.slab import Slab
from tests.store_oracle import LAYOUT

_form = RowFormat(LAYOUT)
_slab = Slab(_form, 4)
for _batch in range(2, 7):
    _ids = np.array([2 * _batch, 2 * _batch + 1], np.uint64)
    _slab.pin(_slab.find(Deduplicator()(_ids).keys), _batch)
    _slots = _slab.make_room(2, _batch)[0]
    _slab.admit(
        _ids, _slots, _form.fresh(_ids, np.zeros(2, np.uint16), 0), np.ones(2, np.bool_), _batch
    )
    _grad = _slab.gather(_form.place("shared"), _slots)
    _slab.learn(_slots, NO_COUNTS, 0, _batch)
    _slab.update(_form.place("shared"), _slots, _grad)
_slab.find(_ids)

"""Rows that have had their time, a slice of the store at each commit, and what goes with them.

When the row of a user or an item goes, so do its record, its CR aggregate and, by a tombstone in
the next version, its published vectors. An entity that never earned a row goes by its slot's time
to live alone.

Under cut_by = "count" a sweep is taken whole, so that bytes depend on the log alone; otherwise by
slices between steps. A crash in the middle of a sweep only has it begun anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import structlog

from embedding_store.expiry import ExpiryPolicy, Sweep
from embedding_store.keys import row_keys
from embedding_store.policies import expiry_policy
from embedding_store.row import Headers
from embedding_store.store import EmbeddingStore
from settings.config import Config
from trainer import metrics
from trainer.durable import Progress
from trainer.entities import SPACE, EntityKey
from trainer.representation import TOWER_SIDES, Representations

_log = structlog.get_logger()


class Expiring:
    """The sweeps of one store, one after another."""

    def __init__(
        self,
        config: Config,
        store: EmbeddingStore,
        representations: Representations,
        progress: Progress,
    ) -> None:
        self._policy: ExpiryPolicy | None = expiry_policy(config.expiry)
        self._every_ms = config.expiry.every
        self._sliced = config.trainer.cut_by == "time"
        self._slice_rows = config.expiry.slice_rows
        self._store, self._representations, self._progress = store, representations, progress
        self._slots = {store.layout.slot_number(f"{side}_id") for side in TOWER_SIDES}
        self._begun_ms = progress.expired_ms
        self._sweep: Sweep | None = None
        self._entities: Iterator[tuple[bytes, bytes]] | None = None

    def before_commit(self) -> None:
        """Go on with the sweep, or begin one if it is time; call it while no commit is under way,
        with no look-up in use."""
        if self._policy is None:
            return
        now_ms = self._progress.now_ms
        if self._sweep is None:
            last_ms = self._progress.expired_ms
            if now_ms < 0 or (last_ms >= 0 and now_ms - last_ms < self._every_ms):
                return
            self._begun_ms = now_ms
            self._sweep = self._store.sweep(self._policy, now_ms)
            self._entities = None
        self._slice(self._policy)
        while not self._sliced and self._sweep is not None:
            self._slice(self._policy)

    def _slice(self, policy: ExpiryPolicy) -> None:
        assert self._sweep is not None
        if not self._sweep.finished:
            self._take(self._store.expire_slice(self._sweep, self._slice_rows))
            return
        if self._entities is None:
            self._entities = self._store.scan(SPACE)
        keys = list(islice(self._entities, self._slice_rows))
        self._retire_rowless([key for key, _ in keys], policy)
        if len(keys) == self._slice_rows:
            return
        found = self._sweep.found
        if found.rows:
            _log.info("rows_expired", rows=found.rows, of=found.examined, bytes=found.bytes)
        self._progress.expired_ms = self._begun_ms
        self._sweep, self._entities = None, None

    def _take(self, gone: Headers) -> None:
        """Retire the entities whose rows went just now."""
        for number, count in zip(*np.unique(gone["slot"], return_counts=True), strict=True):
            metrics.EXPIRED.labels(self._store.layout.slot_name(int(number))).inc(int(count))
        of_entities = gone[np.isin(gone["slot"], list(self._slots))]
        self._representations.retire_rows(of_entities["key"].tolist())

    def _retire_rowless(self, keys: list[EntityKey], policy: ExpiryPolicy) -> None:
        """Of entities `keys`, retire those that have no row and were not seen for their slot's
        time to live."""
        for side in TOWER_SIDES:
            slot, prefix = f"{side}_id", side.encode() + b":"
            ttl_s = policy.slots.get(slot, policy.default).ttl_s
            if ttl_s is None:
                continue
            of_side = [key for key in keys if key.startswith(prefix)]
            before_ms = self._begun_ms - 1000 * ttl_s
            unseen = self._representations.unseen_since(of_side, before_ms)
            if not unseen:
                continue
            ids = [key.partition(b":")[2].decode("utf-8", "surrogatepass") for key in unseen]
            any_set = next(iter(self._store.layout.sets))
            has_row = self._store.peek(row_keys(slot, ids), any_set)[1]
            rowless = [key for key, has in zip(unseen, has_row.tolist(), strict=True) if not has]
            self._representations.retire(rowless)

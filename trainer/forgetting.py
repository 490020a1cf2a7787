"""Forgetting a user: out of rows, record, CR aggregate, reservoir and scored predictions, those of
evaluation's arms among them.

Samples of the user that were produced before the command are still in the log, and a store that is
restored reads them again. So the store keeps (space `forgotten`) a hash of the id and the time of
the command, for as long as the log keeps samples, and such samples are passed over. What the user
does afterwards is a new user's.

What stays, because it is not the user's alone: the weights, other slots' rows (a city's), sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import structlog
import xxhash

from embedding_store.keys import row_keys
from embedding_store.store import EmbeddingStore
from topics.control import Command
from trainer import metrics
from trainer.batch import FINAL, Batch
from trainer.cutting import Cutting
from trainer.evaluation import Evaluation
from trainer.representation import Representations
from trainer.reservoir import SPACE as RESERVOIR

SPACE = "forgotten"
KEPT_MS = 30 * 86_400_000
"""Longer than any sample is kept: `samples` has a retention of seven days unless it was changed."""
_log = structlog.get_logger()


class Forgetting:
    """The forgotten of one store. Changes are durable with the next commit."""

    def __init__(
        self,
        store: EmbeddingStore,
        representations: Representations,
        evaluations: Sequence[Evaluation],
        cutting: Cutting,
    ) -> None:
        """`evaluations`: every one that keeps predictions in this store."""
        self._store, self._representations = store, representations
        self._evaluations, self._cutting = evaluations, cutting
        self._since: dict[int, int] = {
            int.from_bytes(key, "big"): int(raw) for key, raw in store.scan(SPACE)
        }

    def forget(self, command: Command) -> None:
        """Call it while no commit is under way, with no look-up in use."""
        assert command.user_id is not None
        user = command.user_id.encode("utf-8", "surrogatepass")
        known, kinds = self._representations.forget_user(user)
        rows = self._store.remove(row_keys("user_id", [command.user_id]))
        reserved = self._store.get(RESERVOIR, user) is not None
        self._store.delete(RESERVOIR, user)
        scored = sum(evaluation.forget_user(user) for evaluation in self._evaluations)
        for key, since_ms in list(self._since.items()):
            if since_ms < command.created_ms - KEPT_MS:
                del self._since[key]
                self._store.delete(SPACE, key.to_bytes(8, "big"))
        code = xxhash.xxh3_64_intdigest(user)
        self._since[code] = command.created_ms
        self._store.put(SPACE, code.to_bytes(8, "big"), b"%d" % command.created_ms)
        self._cutting.bury(kinds, user)
        metrics.FORGOTTEN.inc()
        _log.info("user_forgotten", record=known, rows=rows, reservoir=reserved, scored=scored)

    def without(self, batch: Batch) -> Batch | None:
        """The batch without samples of forgotten users from before they were; None if none is left.

        Predictions that waited for them are dropped.
        """
        if not self._since:
            return batch
        codes = [xxhash.xxh3_64_intdigest(user) for user in batch.users]
        until = np.asarray([self._since.get(code, -1) for code in codes], np.int64)
        gone = batch.produced_ms <= until
        if not gone.any():
            return batch
        finals = np.flatnonzero(gone & (batch.state == FINAL)).tolist()
        for evaluation in self._evaluations:
            evaluation.drop([batch.impressions[b] for b in finals])
        metrics.SUPPRESSED.inc(int(gone.sum()))
        left = np.flatnonzero(~gone)
        return batch.take(left) if left.size else None

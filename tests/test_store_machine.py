"""Any sequence of calls, crashes included, against the oracle: every byte, after every call.

Two-sided: what a commit holds is there after a crash, what it does not hold is gone. A crash is the
store's files copied as they lie and opened elsewhere; a commit under way is held by stopping the
child that builds its table, so that it is known on which side of the crash it lies.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from embedding_store.admission import PANES, AdmissionFilter, AdmissionPolicy, AdmissionRule
from embedding_store.errors import StoreMisuse
from embedding_store.eviction import EVICTIONS
from embedding_store.expiry import ExpiryPolicy, ExpiryRule
from embedding_store.keys import row_keys
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore, Lookup, PendingCommit
from tests.knobs import examples
from tests.store_oracle import Oracle, assert_same
from tests.test_store_commit import _copy_files

BATCH_KEYS = 6
CACHE_ROWS = 2 * BATCH_KEYS
"""The least that is allowed: the third look-up evicts."""
EXAMPLES = examples(12, 1000)
SETS = {
    "shared": SetSpec(dim=4, lr=0.1),
    "exp:0": SetSpec(dim=3, optimizer="adam", lr=0.5, eps=1e-3, init_scale=0.5),
    "wide": SetSpec(dim=9, optimizer="adagrad", lr=0.1),
    "linear": SetSpec(dim=1, optimizer="ftrl", lr=0.3, l1=0.05, l2=0.1, init_scale=0.0),
    "half": SetSpec(dim=5, optimizer="rowwise_adagrad", dtype="bfloat16", init_scale=1.0),
    "plain": SetSpec(dim=2, optimizer="sgd", lr=0.02),
}
LAYOUT = RowLayout(
    SETS, {"item": (), "user": ("shared", "half"), "query": ("shared", "linear", "plain")}
)
SLOTS = tuple(LAYOUT.slots)
KEYS = row_keys("any", [str(i) for i in range(60)])
NUMBERS = np.array([LAYOUT.slot_number(SLOTS[i % 3]) for i in range(60)], np.uint16)
SLOT_OF = dict(zip(KEYS.tolist(), NUMBERS.tolist(), strict=True))
WINDOW_S = 40
ADMISSION = AdmissionPolicy(
    slots={"query": AdmissionRule(policy="count", count=3)}, window_s=WINDOW_S, keys_max=1000
)


def _few(drawn: list[int]) -> list[int]:
    """Those of `drawn` that are among its first BATCH_KEYS distinct ones."""
    return [number for number in drawn if number in list(dict.fromkeys(drawn))[:BATCH_KEYS]]


ids = st.lists(st.integers(0, 59), min_size=1, max_size=20).map(_few)
any_ids = st.lists(st.integers(0, 59), max_size=20)
set_names = st.sampled_from(list(SETS))
record = st.tuples(st.sampled_from(["outbox", "offsets"]), st.binary(max_size=2))
expiry_rules = st.builds(
    lambda ttl, most: ExpiryRule(ttl_s=ttl, rows_max=most),
    st.none() | st.integers(1, 60),
    st.none() | st.integers(1, 12),
)
openings = st.fixed_dictionaries(
    {
        "eviction": st.sampled_from(EVICTIONS),
        "cache_rows_max": st.sampled_from([CACHE_ROWS, 45]),
        "table_rows_min": st.sampled_from([1, 1, 8192]),
    }
)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="store-"))
        self.opened = 0
        self.oracle = Oracle(LAYOUT, {LAYOUT.slot_number("query"): 3}, WINDOW_S // PANES)
        self.now_ms = 0
        self.recent: list[tuple[Lookup, list[int]]] = []
        """With the ids that got a row: one that is refused has none in this look-up for good."""
        self.pending: PendingCommit | None = None
        self.held = 0
        """Process id of the stopped child; 0 = it runs."""

    def teardown(self) -> None:
        self._let_go()
        self.store.close()
        shutil.rmtree(self.directory)

    @initialize(start=st.integers(0, 10**10), opening=openings)
    def begin(self, start: int, opening: dict[str, object]) -> None:
        self.now_ms = start
        self.store = self._open(opening)

    def _open(self, opening: dict[str, object]) -> EmbeddingStore:
        return EmbeddingStore.open(
            self.directory / str(self.opened),
            LAYOUT,
            owner="test",
            admission=AdmissionFilter(ADMISSION),
            **opening,  # type: ignore[arg-type]
        )

    # -- rows -----------------------------------------------------------------------------------

    @rule(ids=ids, seconds=st.integers(-15, 30))
    def look_up(self, ids: list[int], seconds: int) -> None:
        self.now_ms = max(0, self.now_ms + 1000 * seconds)  # event time may step back
        given = KEYS[ids]
        created, refused = self.oracle.lookup(given.tolist(), self.now_ms, SLOT_OF)
        lookup = self.store.lookup(given, slots=NUMBERS[ids], now_ms=self.now_ms)
        assert lookup.keys[lookup.inverse].tolist() == given.tolist()
        assert set(lookup.keys[~lookup.found].tolist()) == created | refused
        assert set(lookup.keys[~lookup.admitted].tolist()) == refused
        self.recent = [*self.recent[-1:], (lookup, [k for k in given.tolist() if k not in refused])]

    @precondition(lambda self: self.recent)
    @rule(which=st.integers(0, 1), name=set_names, seed=st.integers(0))
    def train(self, which: int, name: str, seed: int) -> None:
        lookup, given = self.recent[which % len(self.recent)]
        keys, spec = lookup.keys.tolist(), SETS[name]
        vectors = self.store.gather(lookup, name)
        has = [key in given and name in self.oracle.rows[key].sets for key in keys]
        assert self.store.has_set(lookup, name).tolist() == has
        for vector, key, there in zip(vectors, keys, has, strict=True):
            expected = self.oracle.rows[key].sets[name][0] if there else np.zeros(spec.dim, "f4")
            assert vector.tobytes() == expected.tobytes()
        rng = np.random.default_rng(seed)
        grad = rng.standard_normal(vectors.shape, dtype=np.float32)
        if seed % 5 == 0:
            grad[0, 0] = np.float32("nan")
        if not lookup.counted:
            self.oracle.count(given, self.now_ms)
        self.oracle.update([k if k in given else 0 for k in keys], name, grad)  # 0 = no row
        self.store.update(lookup, name, grad, now_ms=self.now_ms)

    @rule(ids=any_ids)
    def prefetch(self, ids: list[int]) -> None:
        self.store.prefetch(KEYS[ids])

    @rule(ids=any_ids, name=set_names)
    def peek(self, ids: list[int], name: str) -> None:
        vectors, found = self.store.peek(KEYS[ids], name)
        for vector, there, key in zip(vectors, found, KEYS[ids].tolist(), strict=True):
            row = self.oracle.rows.get(key)
            assert there == (row is not None)
            if row is not None and name in row.sets:
                assert vector.tobytes() == row.sets[name][0].tobytes()
            else:
                assert not vector.any()

    @rule(ids=any_ids)
    def remove(self, ids: list[int]) -> None:
        there = [key for key in set(KEYS[ids].tolist()) if key in self.oracle.rows]
        assert self.store.remove(KEYS[ids]) == len(there)
        self.oracle.remove(there)
        self.recent = []

    @precondition(lambda self: self.pending is None)
    @rule(ids=any_ids)
    def remove_what_is_read_ahead(self, ids: list[int]) -> None:
        """What was read before the deletion must not come back once the deletion is on disk."""
        self.store.prefetch(KEYS[ids])
        self.remove(ids)
        self.commit()
        for at in range(0, len(ids), BATCH_KEYS):
            self.look_up(ids[at : at + BATCH_KEYS], 0)

    @precondition(lambda self: self.pending is None)
    @rule(default=expiry_rules, of_user=expiry_rules, dry_run=st.booleans())
    def expire(self, default: ExpiryRule, of_user: ExpiryRule, dry_run: bool) -> None:
        policy = ExpiryPolicy(default=default, slots={"user": of_user})
        told = self.store.expire(policy, self.now_ms, dry_run=dry_run).keys.tolist()
        before = dict(self.oracle.rows)
        assert told == self.oracle.expire(policy, self.now_ms // 1000)
        if dry_run:
            self.oracle.now.rows = before
        else:
            self.recent = []

    @precondition(lambda self: self.pending is None)
    @rule(number=st.integers(0, 19), back=st.integers(0, 60), opening=openings)
    def count_across_a_restart(self, number: int, back: int, opening: dict[str, object]) -> None:
        """A candidate's window goes on where it was, though event time has stepped back."""
        query = [3 * number + 2]
        self.remove(query)
        self.commit()
        self.look_up(query, 15)
        self.commit()
        self.crash_and_reopen(False, opening)
        self.look_up(query * 2, -back)

    @precondition(lambda self: self.pending is None)
    @rule(number=st.integers(0, 19))
    def ask_again_for_what_a_commit_deletes(self, number: int) -> None:
        """A value that is refused now stays deleted while its deletion is being written."""
        query = [3 * number + 2]
        self.look_up(query * 3, 0)
        self.commit()
        self.remove(query)
        self.commit_begins(True)
        self.look_up(query, 0)
        self.peek(query, "shared")

    # -- records --------------------------------------------------------------------------------

    @rule(record=record, value=st.binary(max_size=20))
    def put(self, record: tuple[str, bytes], value: bytes) -> None:
        self.store.put(*record, value)
        self.oracle.state[record] = value

    @rule(record=record)
    def delete(self, record: tuple[str, bytes]) -> None:
        self.store.delete(*record)
        self.oracle.state.pop(record, None)

    @rule(space=st.sampled_from(["outbox", "offsets"]), keys=st.lists(st.binary(max_size=2)))
    def get(self, space: str, keys: list[bytes]) -> None:
        expected = [self.oracle.state.get((space, key)) for key in keys]
        assert self.store.get_many(space, keys) == expected
        assert [self.store.get(space, key) for key in keys] == expected

    # -- commits and crashes --------------------------------------------------------------------

    @precondition(lambda self: self.pending is None)
    @rule()
    def commit(self) -> None:
        self.oracle.commit()
        assert self.store.commit() == self.oracle.commit_id
        assert self.store.verify() == len(self.oracle.rows)
        assert self.store.stats().rows_dirty == 0

    @precondition(lambda self: self.pending is None)
    @rule(hold=st.booleans())
    def commit_begins(self, hold: bool) -> None:
        child = self.store._commits.builder.child_pid
        if hold and child is not None:
            os.kill(child, signal.SIGSTOP)
            os.waitpid(child, os.WUNTRACED)  # until it stands still: before that it still reads
            self.held = child
        self.pending = self.store.commit_begin()
        self.oracle.begin()
        if self.pending.done:  # it went through the log: nothing is held
            self._let_go()

    @precondition(lambda self: self.pending is not None)
    @rule()
    def commit_is_waited_for(self) -> None:
        with pytest.raises(StoreMisuse, match="a commit is under way"):
            self.store.commit_begin()
        self._let_go()
        assert self.pending is not None
        assert self.pending.wait() == self.pending.commit_id == self.oracle.commit_id + 1
        self.oracle.settle()
        self.pending = None

    def _let_go(self) -> None:
        if self.held:
            os.kill(self.held, signal.SIGCONT)
        self.held = 0

    @rule(graceful=st.booleans(), opening=openings)
    def crash_and_reopen(self, graceful: bool, opening: dict[str, object]) -> None:
        """What was committed is there, what was not is gone: `as_the_oracle` checks both."""
        self.opened += 1
        files = self.directory / str(self.opened)
        if graceful:
            self._let_go()
            self.store.close()
        happened = self.pending is not None and not self.held
        if happened and not graceful:
            _wait(lambda: self.pending is None or self.pending.done)
        if not graceful:
            _wait(lambda: self.store._rocks.property("rocksdb.num-running-compactions") == "0")
        _copy_files(self.store.path, files)  # files that were let go may still be on their way
        self._let_go()
        self.store.close()
        self.store = self._open(opening)
        if happened:
            self.oracle.settle()
        self.oracle.crash()
        self.recent, self.pending = [], None

    @precondition(lambda self: self.pending is None)
    @rule(opening=openings)
    def checkpoint(self, opening: dict[str, object]) -> None:
        self.opened += 1
        self.store.checkpoint(self.directory / str(self.opened))
        committed = Oracle(LAYOUT, committed=self.oracle.committed, commit_id=self.oracle.commit_id)
        committed.crash()
        with self._open(opening) as copy:
            assert_same(copy, committed)

    @invariant()
    def as_the_oracle(self) -> None:
        assert_same(self.store, self.oracle)


def _wait(until: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not until():
        assert time.monotonic() < ends, "nothing moved for a minute"
        time.sleep(0.001)


TestStoreMachine = pytest.mark.slow(StoreMachine.TestCase)
TestStoreMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

"""A sweep against brute force over every row: whole, in slices, and beside training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_store.admission import AdmissionFilter, AdmissionPolicy, AdmissionRule
from embedding_store.errors import StoreMisuse
from embedding_store.expiry import Expired, ExpiryPolicy, ExpiryRule, Rules, Sweep
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.reading import StoreReader
from embedding_store.row import HEADER
from embedding_store.store import EmbeddingStore

LAYOUT = RowLayout({"shared": SetSpec(dim=2)}, {"item_id": (), "user_id": (), "city": ()})
SLOTS = ("item_id", "user_id", "city")
NOW_S = 100_000

rules = st.builds(
    lambda ttl, most, scored: ExpiryRule(
        ttl_s=ttl,
        rows_max=most,
        score_min=scored[0] if scored else None,
        half_life_s=scored[1] if scored else None,
    ),
    st.none() | st.integers(1, 2000),
    st.none() | st.integers(1, 12),
    st.none() | st.tuples(st.floats(0.1, 5), st.integers(10, 1000)),
)
rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(NOW_S - 2000, NOW_S), st.integers(1, 6)), max_size=60
)


def _open(path: Path, **options: object) -> EmbeddingStore:
    arguments: dict[str, object] = {"cache_rows_max": 400, "owner": "test", **options}
    return EmbeddingStore.open(path, LAYOUT, **arguments)  # type: ignore[arg-type]


def _write(store: EmbeddingStore, told: list[tuple[int, int, int]], first: int = 1) -> None:
    """Row `first` + n: told[n] = (slot's position, touched at, count)."""
    for n, (slot, touched_s, count) in enumerate(told):
        keys = np.full(count, first + n, np.uint64)
        number = np.full(count, LAYOUT.slot_number(SLOTS[slot]), np.uint16)
        lookup = store.lookup(keys, slots=number, now_ms=touched_s * 1000)
        store.update(lookup, "shared", np.ones((1, 2), np.float32), now_ms=touched_s * 1000)


def _brute(told: list[tuple[int, int, int]], policy: ExpiryPolicy) -> set[int]:
    """Keys that go, one row at a time."""
    gone: set[int] = set()
    for position, slot in enumerate(SLOTS):
        rule = policy.slots.get(slot, policy.default)
        left = []
        for n, (of, touched_s, count) in enumerate(told):
            if of != position:
                continue
            age = NOW_S - touched_s
            score = count * 2.0 ** (-age / rule.half_life_s) if rule.half_life_s else 0.0
            too_old = rule.ttl_s is not None and age > rule.ttl_s
            too_low = rule.score_min is not None and score < rule.score_min
            if too_old or too_low:
                gone.add(n + 1)
            else:
                left.append((score if rule.half_life_s else float(touched_s), n + 1))
        if rule.rows_max is not None:
            gone |= {key for _, key in sorted(left)[: max(0, len(left) - rule.rows_max)]}
    return gone


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("expiry")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(told=rows, default=rules, own=rules, slice_rows=st.integers(1, 30))
def test_what_goes_is_what_brute_force_says(
    folders: Path,
    told: list[tuple[int, int, int]],
    default: ExpiryRule,
    own: ExpiryRule,
    slice_rows: int,
) -> None:
    policy = ExpiryPolicy(default=default, slots={"user_id": own})
    path = folders / str(len(list(folders.iterdir())))
    expected = _brute(told, policy)
    with _open(path) as store:
        _write(store, told)
        store.commit()
        tried = store.expire(policy, NOW_S * 1000, dry_run=True)
        assert sorted(tried.keys.tolist()) == sorted(expected)
        assert store.stats().rows_total == len(told), "a dry run deletes nothing"
        sweep, gone = store.sweep(policy, NOW_S * 1000), []
        while not sweep.finished:
            gone += store.expire_slice(sweep, slice_rows)["key"].tolist()
        assert gone == sorted(expected) and sweep.found.keys.tolist() == gone
        _check_counts(sweep.found, told)
        assert {key for key, _, _ in store.rows()} == set(range(1, len(told) + 1)) - expected
        store.commit()
    with _open(path) as store:
        assert store.verify() == len(told) - len(expected)
        assert not store.expire(policy, NOW_S * 1000).rows, "a second sweep finds nothing"


def _check_counts(found: Expired, told: list[tuple[int, int, int]]) -> None:
    assert found.examined == len(told) and found.rows == len(found.keys)
    for name, slot in found.by_slot.items():
        of_slot = [k for k in found.keys.tolist() if SLOTS[told[k - 1][0]] == name]
        assert slot.rows == len(of_slot) == slot.ttl + slot.score + slot.rows_max
        assert slot.oldest_touched_s == min(told[k - 1][1] for k in of_slot)


def test_a_reader_of_the_same_store_says_the_same(tmp_path: Path) -> None:
    told = [(n % 3, NOW_S - 40 * n, 1 + n % 4) for n in range(50)]
    policy = ExpiryPolicy(default=ExpiryRule(ttl_s=900, rows_max=5))
    with _open(tmp_path / "s") as store:
        _write(store, told)
        store.commit()
    with StoreReader(tmp_path / "s", "test") as reader:
        sweep = _dry_run(reader, policy)
    assert set(sweep.keys.tolist()) == _brute(told, policy)


def _dry_run(reader: StoreReader, policy: ExpiryPolicy) -> Expired:
    sweep = Sweep(policy, reader.layout, reader.form.bytes, NOW_S, dry_run=True)
    while not sweep.finished:
        assert len(sweep.step(reader, 7)) <= 7
    return sweep.found


def test_a_row_touched_while_the_sweep_walks_stays(tmp_path: Path) -> None:
    policy = ExpiryPolicy(default=ExpiryRule(rows_max=3))
    with _open(tmp_path / "s") as store:
        _write(store, [(0, NOW_S - 100 + n, 1) for n in range(10)])
        store.commit()
        sweep = store.sweep(policy, NOW_S * 1000)
        for _ in range(2):
            store.expire_slice(sweep, 6)  # ranked, and nothing taken yet
        _write(store, [(0, NOW_S, 1)], first=4)  # one of the seven that were over
        while not sweep.finished:
            store.expire_slice(sweep, 6)
        assert sweep.found.keys.tolist() == [1, 2, 3, 5, 6, 7]


def test_an_expired_row_is_gone_at_once_and_comes_back_as_a_new_one(tmp_path: Path) -> None:
    policy = ExpiryPolicy(default=ExpiryRule(ttl_s=50))
    with _open(tmp_path / "s") as store:
        _write(store, [(0, NOW_S - 100, 3), (0, NOW_S, 1)])
        store.commit()
        assert store.expire(policy, NOW_S * 1000).keys.tolist() == [1]
        assert not store.peek(np.array([1], np.uint64), "shared")[1].any()
        lookup = store.lookup(np.array([1], np.uint64), slots=None, now_ms=NOW_S * 1000)
        assert not lookup.found.any()
        store.commit()
        assert {key: header.count for key, header, _ in store.rows()} == {1: 0, 2: 1}
        assert store.verify() == 2


def test_an_expired_key_earns_its_row_again(tmp_path: Path) -> None:
    count = AdmissionRule(policy="count", count=3)
    keys, told = np.array([7], np.uint64), []
    policy = AdmissionPolicy(default=count, window_s=400, keys_max=100)
    with _open(tmp_path / "s", admission=AdmissionFilter(policy)) as store:
        for _ in range(4):
            told.append(bool(store.lookup(keys, now_ms=NOW_S * 1000).admitted[0]))
            store.commit()
        store.expire(ExpiryPolicy(default=ExpiryRule(ttl_s=50)), (NOW_S + 100) * 1000)
        store.commit()
        told.append(bool(store.lookup(keys, now_ms=(NOW_S + 100) * 1000).admitted[0]))
        store.commit()
    with _open(tmp_path / "s", admission=AdmissionFilter(policy)) as store:  # it remembers the one
        for _ in range(2):
            told.append(bool(store.lookup(keys, now_ms=(NOW_S + 100) * 1000).admitted[0]))
    assert told == [False, False, True, True, False, False, True]


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(StoreMisuse, match="half-life"):
        ExpiryRule(score_min=1.0)
    with pytest.raises(StoreMisuse, match="above 0"):
        ExpiryRule(rows_max=0)
    with pytest.raises(StoreMisuse, match=r"usr_id.*user_id"):
        Rules(ExpiryPolicy(slots={"usr_id": ExpiryRule(ttl_s=1)}), LAYOUT)
    assert (
        Rules(ExpiryPolicy(), LAYOUT).due(np.zeros(3, np.dtype(HEADER)), NOW_S).tolist()
        == [255] * 3
    )

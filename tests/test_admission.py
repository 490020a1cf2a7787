"""The filter of candidates: never early, exact while not crowded, back after a restart."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store.admission import (
    PANES,
    WAYS,
    AdmissionFilter,
    AdmissionPolicy,
    AdmissionRule,
    _by_number,
)
from embedding_store.errors import StoreCorrupt, StoreMisuse
from embedding_store.layout import RowLayout, SetSpec

WINDOW_S = 40
PANE_S = WINDOW_S // PANES
LAYOUT = RowLayout({"shared": SetSpec(dim=2)}, {"item_id": (), "user_id": ()})
ITEM, USER = LAYOUT.slot_number("item_id"), LAYOUT.slot_number("user_id")
Batches = list[tuple[int, dict[int, int]]]
"""(seconds since the last batch, key -> occurrences in the batch)"""

batches: st.SearchStrategy[Batches] = st.lists(
    st.tuples(
        st.integers(0, WINDOW_S),
        st.dictionaries(st.integers(1, 60), st.integers(1, 3), min_size=1, max_size=12),
    ),
    max_size=40,
)


def _filter(count: int, keys_max: int = 1000) -> AdmissionFilter:
    rule = AdmissionRule(policy="count", count=count)
    policy = AdmissionPolicy(slots={"item_id": rule}, window_s=WINDOW_S, keys_max=keys_max)
    return _bound(policy)


def _bound(policy: AdmissionPolicy) -> AdmissionFilter:
    found = AdmissionFilter(policy)
    found._rules(_by_number(policy, LAYOUT))
    return found


def _ask(found: AdmissionFilter, counts: dict[int, int], now_s: int, slot: int = ITEM) -> list[int]:
    keys = np.array(list(counts), np.uint64)
    slots = np.full(len(keys), slot, np.uint16)
    admitted = found.admit(keys, slots, np.array(list(counts.values()), np.int32), now_s)
    return keys[admitted].tolist()


@settings(max_examples=200, deadline=None)
@given(batches, st.integers(1, 9), st.sampled_from([WAYS, 1000]))
def test_no_key_is_admitted_before_its_threshold_within_the_window(
    story: Batches, threshold: int, keys_max: int
) -> None:
    found, now_s = _filter(threshold, keys_max), 1_000
    seen: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for wait_s, counts in story:
        now_s += wait_s
        admitted = set(_ask(found, counts, now_s))
        for key, count in counts.items():
            seen[key].append((now_s, count))
            within = sum(c for at, c in seen[key] if at > now_s - WINDOW_S)
            in_panes = sum(c for at, c in seen[key] if at // PANE_S > now_s // PANE_S - PANES)
            if key in admitted:
                assert within >= threshold, "early: the window holds fewer occurrences"
                seen[key] = []
            elif keys_max == 1000:  # 60 keys over 256 sets: none is ever forgotten
                assert in_panes < threshold, "late, though its set was not crowded"


@settings(max_examples=50, deadline=None)
@given(batches, st.integers(2, 5), st.integers(0, 39))
def test_a_restart_brings_back_every_byte(story: Batches, threshold: int, at: int) -> None:
    lasting, restarted, now_s = _filter(threshold, 64), _filter(threshold, 64), 1_000
    disk: dict[bytes, bytes] = {}
    for n, (wait_s, counts) in enumerate(story):
        now_s += wait_s
        assert _ask(lasting, counts, now_s) == _ask(restarted, counts, now_s)
        for name, value in restarted.writes():
            if value is None:
                del disk[name]
            else:
                disk[name] = value
        if n >= at:
            restarted = _filter(threshold, 64)
            assert restarted.recover(sorted(disk.items()))
        assert restarted.content() == lasting.content()


def test_changes_are_small_and_the_table_is_rewritten_once_they_outweigh_it() -> None:
    found, disk, bases = _filter(9, 5_000), {}, 0
    for n in range(200):
        writes = found.writes()
        bases += any(name == b"head" for name, _ in writes)
        for name, value in writes:
            if value is None:
                del disk[name]
            else:
                disk[name] = value
        _ask(found, {1 + (n * 97 + k) % 4_000: 1 for k in range(100)}, 1_000)
        assert sum(map(len, disk.values())) < 2.2 * found.memory_bytes
    assert bases > 1
    changes = [name for name in disk if name.startswith(b"change:")]
    assert changes and len(changes) < 200


def test_a_slot_without_a_rule_admits_at_first_sight() -> None:
    found = _filter(3)
    assert _ask(found, {7: 1}, 1_000, slot=USER) == [7]
    assert _ask(found, {7: 1}, 1_000) == []
    assert found.refused.tolist() == [0, 1, 0] and found.candidates == 1


def test_occurrences_in_one_batch_count_together() -> None:
    assert _ask(_filter(3), {7: 3, 8: 2}, 1_000) == [7]


def test_a_full_set_forgets_the_one_seen_least() -> None:
    found = _filter(5, WAYS)
    crowd = dict.fromkeys(range(1, 400), 2)
    _ask(found, {999: 4}, 1_000)
    for key in crowd:
        _ask(found, {key: 2}, 1_000)
    assert _ask(found, {999: 1}, 1_000) == [999]


def test_a_chance_is_repeatable_and_holds_on_average() -> None:
    rule = AdmissionRule(policy="probability", probability=0.2)
    policy = AdmissionPolicy(default=rule, window_s=WINDOW_S, keys_max=200_000)
    first, second = (_bound(policy) for _ in range(2))
    counts = dict.fromkeys(range(1, 20001), 1)
    admitted = _ask(first, counts, 1_000, slot=0)
    assert admitted == _ask(second, counts, 1_000, slot=0)
    assert 0.19 < len(admitted) / len(counts) < 0.21
    left = {key: 1 for key in counts if key not in set(admitted)}
    again = _ask(first, left, 1_000, slot=0)  # the next occurrence is another draw
    assert 0.18 < len(again) / len(left) < 0.22
    twice = _bound(policy)
    both = _ask(twice, dict.fromkeys(counts, 2), 1_000, slot=0)
    assert sorted(both) == sorted([*admitted, *again])


def test_another_window_begins_anew_and_a_cut_record_is_refused() -> None:
    found = _filter(3)
    _ask(found, {7: 2}, 1_000)
    disk = dict(found.writes())
    policy = AdmissionPolicy(slots={}, window_s=2 * WINDOW_S, keys_max=100)
    other = _bound(policy)
    assert not other.recover(disk.items())
    writes = other.writes()
    assert {name for name, value in writes if value is None} == set(disk)
    assert _bound(policy).recover((n, v) for n, v in writes if v is not None)
    del disk[b"base:\0\0\0\0"]
    with pytest.raises(StoreCorrupt, match="incomplete"):
        _filter(3).recover(disk.items())


def test_rules_of_unknown_slots_and_impossible_numbers_are_refused() -> None:
    rule = AdmissionRule(policy="count", count=2)
    with pytest.raises(StoreMisuse, match=r"itm_id.*item_id"):
        _bound(AdmissionPolicy(slots={"itm_id": rule}))
    with pytest.raises(StoreMisuse, match="count=`0`"):
        AdmissionRule(policy="count", count=0)
    with pytest.raises(StoreMisuse, match=r"probability=`1\.5`"):
        AdmissionRule(policy="probability", probability=1.5)

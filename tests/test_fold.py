"""Versions become visible whole, newest wins, deletions hold: without Kafka."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downstream.fold import VersionFold
from downstream.table import VectorTable
from tests.publishing import DIM, manifest, representation, tombstone
from topics.errors import RecordInvalid
from topics.representation import Representation


def held(table: VectorTable) -> dict[str, float]:
    ids, vectors = table.matrix()
    assert len(ids) == len(vectors) == len(table)
    for entity_id, row in zip(ids, vectors, strict=True):
        found = table.get(entity_id)
        assert found is not None and found.vector is not None
        assert found.vector.tolist() == row.tolist() == [found.version] * DIM
    return {entity_id: float(row[0]) for entity_id, row in zip(ids, vectors, strict=True)}


def test_newest_version_wins_and_older_ones_are_ignored() -> None:
    table = VectorTable("user")
    table.apply([representation("a", 1), representation("b", 2), representation("a", 3)])
    table.apply([representation("a", 2), tombstone("b", 1)])
    assert held(table) == {"a": 3, "b": 2}
    table.apply([tombstone("b", 4), representation("c", 4)])
    assert held(table) == {"a": 3, "c": 4}
    table.apply([representation("b", 3)])  # an older re-publication does not revive it
    assert held(table) == {"a": 3, "c": 4}
    table.apply([representation("b", 5)])
    assert held(table) == {"a": 3, "b": 5, "c": 4}


def test_only_newer_events_count_for_freshness() -> None:
    table = VectorTable("user")

    def newer(record: Representation) -> list[bool]:
        return [change.has_newer_event for change in table.apply([record])]

    assert newer(representation("a", 1, event_ms=100)) == [True]
    assert newer(representation("a", 2, event_ms=100)) == [False]  # a sweep
    assert newer(representation("a", 3, event_ms=101)) == [True]
    assert newer(representation("a", 4, event_ms=50)) == [False]  # a rollback
    assert newer(representation("a", 2, event_ms=500)) == []  # older: not applied


def test_another_length_is_refused_unless_nothing_is_held() -> None:
    table = VectorTable("user")
    table.apply([representation("a", 1)])
    wider = Representation(
        kind="user",
        id="b",
        vector=np.ones(DIM + 1, np.float32),
        version=2,
        step=0,
        event_ms=0,
        produced_ms=0,
    )
    with pytest.raises(RecordInvalid, match=r"must have one length, got \[4, 5\]"):
        table.apply([wider])
    assert held(table) == {"a": 1}
    table.apply([tombstone("a", 2)])
    table.apply([wider])
    assert table.matrix()[1].shape == (1, DIM + 1)


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9), st.booleans()), max_size=60),
    st.integers(1, 7),
)
def test_table_equals_a_dictionary(writes: list[tuple[str, int, bool]], batch: int) -> None:
    table = VectorTable("user")
    oracle: dict[str, tuple[int, bool]] = {}
    for entity_id, version, is_deleted in writes:
        if version >= oracle.get(entity_id, (0, False))[0]:
            oracle[entity_id] = (version, is_deleted)
    made = [tombstone(i, v) if d else representation(i, v) for i, v, d in writes]
    for start in range(0, len(made), batch):
        table.apply(made[start : start + batch])
    assert held(table) == {i: v for i, (v, is_deleted) in oracle.items() if not is_deleted}


def test_rows_of_a_million_ids_grow_and_are_used_again() -> None:
    table = VectorTable("user")
    table.apply(representation(f"u{i}", 1) for i in range(3000))
    table.apply(tombstone(f"u{i}", 2) for i in range(1000))
    table.apply(representation(f"n{i}", 3) for i in range(1500))
    assert len(held(table)) == 3500
    assert table.matrix()[1].shape == (3500, DIM)


def test_version_shows_only_when_manifest_and_every_partition_are_read() -> None:
    fold = VersionFold(["user", "item"])
    first = manifest(1, end_offsets={"representations.user": {0: 2, 1: 1}})
    fold.stage(0, 0, representation("a", 1))
    fold.close(first)
    assert fold.advance() is None
    fold.stage(0, 1, representation("b", 1))
    assert fold.advance() is None  # partition 1 is still to come
    fold.stage(0, 3, representation("c", 2))  # already of the next version
    fold.stage(1, 0, representation("d", 1))
    changes = fold.advance()
    assert changes is not None and {change.id for change in changes} == {"a", "b", "d"}
    assert held(fold.tables["user"]) == {"a": 1, "b": 1, "d": 1}
    assert fold.manifest == first
    second = manifest(2, end_offsets={"representations.user": {0: 6, 1: 2}})
    fold.close(second)
    assert fold.advance() is None
    fold.reach("user", 0, 6)  # offsets 4 and 5 held control records only
    fold.reach("user", 1, 2)
    assert [change.id for change in fold.advance() or []] == ["c"]
    assert fold.manifest == second


def test_several_waiting_versions_show_as_the_newest_whole_one() -> None:
    fold = VersionFold(["user"])
    ends = {1: 1, 2: 2, 3: 5}
    for version, end in ends.items():
        fold.close(manifest(version, end_offsets={"representations.user": {0: end}}))
    for offset, version in ((0, 1), (1, 2), (2, 3)):
        fold.stage(0, offset, representation("a", version))
    fold.advance()
    assert fold.manifest is not None and fold.manifest.version == 2
    assert held(fold.tables["user"]) == {"a": 2}
    assert (fold.applied, fold.closed) == (2, 3)


def test_manifest_of_an_older_version_moves_nothing_back() -> None:
    fold = VersionFold(["user"])
    for version, end, offset in ((2, 1, 0), (1, 2, 1)):
        fold.stage(0, offset, representation("a", version))
        fold.close(manifest(version, end_offsets={"representations.user": {0: end}}))
        fold.advance()
    assert fold.manifest is not None and fold.manifest.version == 2
    assert held(fold.tables["user"]) == {"a": 2}

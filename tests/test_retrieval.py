"""Retrieval from published vectors: the index against exact search, and kept live by a reader."""

from __future__ import annotations

import time

import numpy as np
import pytest

from downstream.reader import RepresentationReader
from downstream.retrieval import RetrievalIndex, exact_search, recall_at_k
from tests.publishing import DIM, manifest, records, representation, stack_config, tombstone
from tests.readable import Publisher
from topics.admin import ensure_topics


def test_recall_against_exact_search() -> None:
    random = np.random.default_rng(3)
    ids = [f"i{n}" for n in range(2_000)]
    vectors = random.normal(size=(2_000, 16)).astype(np.float32)
    queries = random.normal(size=(50, 16)).astype(np.float32)
    index = RetrievalIndex(16)
    index.put(ids, vectors)
    exact = exact_search(ids, vectors, queries, 10)
    found = index.search(queries, 10)
    assert recall_at_k([[i for i, _ in row] for row in found], exact) > 0.9
    best_id, best = found[0][0]
    assert best == pytest.approx(float(queries[0] @ vectors[int(best_id[1:])]), rel=1e-5)
    assert [s for _, s in found[0]] == sorted((s for _, s in found[0]), reverse=True)


def test_exact_search_is_by_inner_product() -> None:
    vectors = np.asarray([[1, 0], [3, 0], [0, 5], [2, 0]], np.float32)
    queries = np.asarray([[1, 0], [0, -1]], np.float32)
    assert exact_search(["a", "b", "c", "d"], vectors, queries, 2)[0] == ["b", "d"]
    assert recall_at_k([["b", "x"]], [["b", "d"]]) == 0.5


def test_a_replaced_vector_answers_no_more_and_a_removed_item_is_gone() -> None:
    index = RetrievalIndex(2)
    index.put(["a", "b"], np.asarray([[1, 0], [0, 1]], np.float32))
    index.put(["a"], np.asarray([[-1, 0]], np.float32))
    assert len(index) == 2
    assert index.search(np.asarray([[1, 0]], np.float32), 2) == [[("b", 0.0), ("a", -1.0)]]
    index.remove(["a", "never there"])
    assert [i for i, _ in index.search(np.asarray([[1, 0]], np.float32), 2)[0]] == ["b"]
    index.put(["a"], np.asarray([[2, 0]], np.float32))
    assert index.search(np.asarray([[1, 0]], np.float32), 1) == [[("a", 2.0)]]


def test_an_empty_index_finds_nothing_and_a_wrong_width_is_named() -> None:
    index = RetrievalIndex(2)
    assert index.search(np.ones((3, 2), np.float32), 5) == [[], [], []]
    with pytest.raises(ValueError, match=r"expected vectors \[1, 2\], got \[1, 3\]"):
        index.put(["a"], np.ones((1, 3), np.float32))


@pytest.mark.kafka
@pytest.mark.slow
def test_the_index_follows_the_topic(kafka: str, prefix: str) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{prefix}-trainer")
    old = [representation(f"i{n}", 1, kind="item") for n in range(20)]
    publisher.publish(1, records(old), manifest(1))
    index = RetrievalIndex(DIM)
    with RepresentationReader(config, kafka, on_applied=index.follow("item")) as reader:
        index.load(reader, "item")
        assert (len(index), index.version) == (20, 1)
        new = [representation("i3", 2, kind="item"), tombstone("i4", 2, kind="item")]
        publisher.publish(2, records(new), manifest(2))
        assert reader.wait_until(2, 120)
        ends = time.monotonic() + 60
        while (index.version, len(index)) != (2, 19):  # `on_applied` runs after the version shows
            assert time.monotonic() < ends, (index.version, len(index))
            time.sleep(0.02)
        (best,) = index.search(np.ones((1, DIM), np.float32), 1)
        assert best == [("i3", 2.0 * DIM)]
        assert len(index) == 19
    publisher.close()

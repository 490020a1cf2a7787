"""Benchmark `reader`: how soon a new reader holds a million vectors, and how it is read.

Bootstrap from the compacted topics, `take` of a model's batch, and retrieval from the live index
against exact search over the same vectors.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measuring import run_benchmark, say
from publish import DIM, manifest_of, vector_of

from downstream.reader import RepresentationReader
from downstream.retrieval import RetrievalIndex, exact_search, recall_at_k
from runtime.broker import EmbeddedBroker
from settings.config import Config, KafkaConfig
from topics.admin import ensure_topics
from topics.publisher import Publisher, Record
from topics.representation import encode

K = 100
BATCH = 1_024
AT_ONCE = 100_000


def measure(quick: bool) -> dict[str, Any]:
    """See the module."""
    ids, items = (50_000, 10_000) if quick else (1_000_000, 100_000)
    config = Config(kafka=KafkaConfig(topic_prefix="bench"))
    with (
        tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder,
        EmbeddedBroker(Path(folder) / "broker") as broker,
    ):
        _fill(config, broker.bootstrap, ids)
        process, before = psutil.Process(os.getpid()), psutil.Process().memory_info().rss
        started = time.perf_counter()
        with RepresentationReader(
            config, broker.bootstrap, ("user",), bootstrap_timeout_seconds=600
        ) as reader:
            bootstrap = time.perf_counter() - started
            assert reader.count("user") == ids
            memory = process.memory_info().rss - before
            say(f"bootstrap of {ids:,} ids in {bootstrap:.1f} s")
            takes = _takes(reader, ids)
        return {
            "ids": ids,
            "bootstrap_seconds": bootstrap,
            "bootstrap_vectors_per_second": ids / bootstrap,
            "bytes_per_id": memory / ids,
            "take_vectors_per_second": takes,
            **_retrieval(items, queries=200 if quick else 2_000),
            "dim": DIM,
        }


def _fill(config: Config, bootstrap: str, ids: int) -> None:
    random = np.random.default_rng(1)
    ensure_topics(config, bootstrap)
    publisher = Publisher(config, bootstrap, "bench-trainer")
    for version, start in enumerate(range(0, ids, AT_ONCE), start=1):
        count = min(AT_ONCE, ids - start)
        matrix = random.normal(size=(count, DIM)).astype(np.float32)
        records: list[Record] = [
            ("representations.user", *encode(vector_of(start + n, matrix[n], version)))
            for n in range(count)
        ]
        publisher.publish(version, records, manifest_of(version, count))
    publisher.close()


def _takes(reader: RepresentationReader, ids: int) -> float:
    random = np.random.default_rng(2)
    batches = [[f"user-{n}" for n in random.integers(0, ids, BATCH)] for _ in range(50)]
    started = time.perf_counter()
    for batch in batches:
        reader.take("user", batch)
    return len(batches) * BATCH / (time.perf_counter() - started)


def _retrieval(items: int, queries: int) -> dict[str, float]:
    """Clustered, as learnt vectors are; uniform ones have no near neighbours to find."""
    random = np.random.default_rng(3)
    centres = random.normal(size=(100, DIM))
    vectors = (
        centres[random.integers(0, 100, items)] + 0.5 * random.normal(size=(items, DIM))
    ).astype(np.float32)
    asked = (
        centres[random.integers(0, 100, queries)] + 0.5 * random.normal(size=(queries, DIM))
    ).astype(np.float32)
    ids = [f"item-{n}" for n in range(items)]
    index = RetrievalIndex(DIM, search_width=256)
    started = time.perf_counter()
    index.put(ids, vectors)
    built = time.perf_counter() - started
    started = time.perf_counter()
    found = [index.search(asked[q : q + 1], K)[0] for q in range(queries)]
    seconds = time.perf_counter() - started
    exact = exact_search(ids, vectors, asked, K)
    recall = recall_at_k([[i for i, _ in row] for row in found], exact)
    say(f"{queries / seconds:,.0f} queries/s one by one, recall@{K} {recall:.3f}")
    return {
        "index_items": items,
        "index_build_vectors_per_second": items / built,
        "retrieval_queries_per_second": queries / seconds,
        "recall_at_100": recall,
    }


if __name__ == "__main__":
    run_benchmark("reader", measure)

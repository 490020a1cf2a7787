"""Benchmark `publish`: vectors a second over a real broker, and bytes against a full dump.

What a full dump costs is not the last version's size: a topic that is to be as fresh by dumps must
carry one per version. The policies are compared at their downstream AUC over the same impressions:
full (every vector, every version), touched (the default), budget (the changed and busy first, half
as many, in int8, with a sweep that bounds every vector's age).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import run_benchmark, say, spread
from transfer_stream import (
    Arm,
    CachedFields,
    Replayed,
    Upstream,
    make_log,
    run_arm,
    run_upstream,
    traffic,
    upstream_config,
    widths,
)

from runtime.broker import EmbeddedBroker
from settings.config import Config, KafkaConfig
from topics.admin import ensure_topics
from topics.manifest import Manifest
from topics.publisher import Publisher, Record
from topics.representation import Representation, encode

DIM = 32
DOMAIN = "search"
POLICIES: dict[str, dict[str, Any]] = {
    "full": {"publish__age_max": "1s"},
    "touched": {},
    "budget": {
        "publish__vectors_max": 100,
        "publish__age_max": "300s",
        "publish__dtype": "int8",
    },
}


def measure(quick: bool) -> dict[str, Any]:
    """See the module."""
    rates = _rates(20_000 if quick else 200_000, rounds=1 if quick else 3)
    found = _policies(4_000 if quick else 36_000)
    full = found["full"]
    return {
        "vectors_per_second": rates["median"],
        "bytes_full": full["bytes"],
        "bytes_touched": found["touched"]["bytes"],
        "bytes_budget": found["budget"]["bytes"],
        "touched_of_full": found["touched"]["bytes"] / full["bytes"],
        "budget_of_full": found["budget"]["bytes"] / full["bytes"],
        "auc_full": full["auc"],
        "auc_touched": found["touched"]["auc"],
        "auc_budget": found["budget"]["auc"],
        "goal_of_full": 1 / 13,
        "rates": rates,
        "policies": found,
        "dim": DIM,
        "domain": DOMAIN,
    }


def _rates(vectors: int, rounds: int) -> dict[str, float]:
    """Vectors a second of one version each, from encoded records to a committed transaction."""
    random = np.random.default_rng(1)
    matrix = random.normal(size=(vectors, DIM)).astype(np.float32)
    config = Config(kafka=KafkaConfig(topic_prefix="bench"))
    rates: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder,
        EmbeddedBroker(Path(folder) / "broker") as broker,
    ):
        ensure_topics(config, broker.bootstrap)
        publisher = Publisher(config, broker.bootstrap, "bench-trainer")
        for version in range(1, rounds + 2):
            records: list[Record] = [
                ("representations.user", *encode(vector_of(n, matrix[n], version)))
                for n in range(vectors)
            ]
            started = time.perf_counter()
            publisher.publish(version, records, manifest_of(version, vectors))
            if version > 1:  # the first one opens the connections
                rates.append(vectors / (time.perf_counter() - started))
                say(f"{rates[-1]:,.0f} vectors/s")
        publisher.close()
    return spread(rates)


def vector_of(n: int, vector: Any, version: int) -> Representation:
    """Of the n-th user."""
    return Representation(
        kind="user",
        id=f"user-{n}",
        vector=vector,
        version=version,
        step=version,
        event_ms=1_700_000_000_000,
        produced_ms=1_700_000_000_000,
    )


def manifest_of(version: int, vectors: int) -> Manifest:
    """Of a version of so many users."""
    return Manifest(
        version=version,
        step=version,
        created_ms=int(time.time() * 1000),
        event_ms=0,
        watermark_ms=-1,
        counts={"user": vectors},
        source_offsets={},
        evaluation={},
    )


def _policies(impressions: int) -> dict[str, dict[str, float]]:
    log, source = make_log(0, impressions)
    stream = traffic(log, DOMAIN)
    found: dict[str, dict[str, float]] = {}
    for name, flags in POLICIES.items():
        config = upstream_config(source, 0, **flags)
        upstream: Upstream = run_upstream(log, config)
        arm = Arm("concat", CachedFields(config), widths(upstream.versions))
        served = run_arm(arm, Replayed(upstream.versions, 1_000), stream)
        found[name] = {
            "bytes": upstream.bytes_published,
            "vectors": upstream.vectors,
            "versions": len(upstream.versions),
            "auc": served.auc(),
        }
        say(f"{name}: {upstream.bytes_published:,} bytes, AUC {served.auc():.4f}")
    return found


if __name__ == "__main__":
    run_benchmark("publish", measure)

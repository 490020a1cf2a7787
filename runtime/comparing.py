"""`headwater compare A B`: what differs between two stacks over one history.

Samples are compared by impression, in their final state; representations by id, as of each stack's
newest manifest; metrics by task, as those manifests say them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import polars as pl

from downstream.reader import RepresentationReader
from settings.config import Config
from topics.names import KINDS, SAMPLES, Kind
from topics.sample import decode_sample_head
from topics.scan import read_to_end

_FIRST = 10
_KEY = ["impression_id", "event_ms"]


class SampleDifferences(msgspec.Struct, kw_only=True):
    """Final samples of A and B by impression."""

    states: dict[str, dict[str, int]]
    """"a" and "b" -> state -> records."""
    only_a: int
    only_b: int
    both: int
    labels: dict[str, int]
    """Kind -> impressions whose label differs."""
    delays: int
    values: int
    identical: int
    first: dict[str, list[str]]
    """What differs -> the first impression ids."""


class VectorDifferences(msgspec.Struct, kw_only=True):
    """One kind of representation."""

    only_a: int
    only_b: int
    both: int
    identical: int
    cosine_min: float | None
    cosine_mean: float | None
    difference_max: float | None
    """Largest absolute difference of one element."""
    first: list[str]
    """Ids with the smallest cosine."""


class Comparison(msgspec.Struct, kw_only=True):
    a: str
    b: str
    samples: SampleDifferences
    representations: dict[str, VectorDifferences]
    metrics: dict[str, dict[str, dict[str, Any] | None]]
    """Task -> "a" and "b" -> progressive metrics as the newest manifest has them."""
    identical: bool
    """No sample, vector or metric differs, and none is only in one."""


def compare(a: Config, b: Config, bootstrap: str) -> Comparison:
    """Reads both stacks' samples and representations whole. Raises TopicError, ReaderTimeout."""
    samples = _compare_samples(a, b, bootstrap)
    vectors, metrics = _compare_published(a, b, bootstrap)
    return Comparison(
        a=a.kafka.topic_prefix,
        b=b.kafka.topic_prefix,
        samples=samples,
        representations=vectors,
        metrics=metrics,
        identical=not (samples.only_a or samples.only_b or samples.both - samples.identical)
        and all(not (of.only_a or of.only_b or of.both - of.identical) for of in vectors.values())
        and all(of["a"] == of["b"] for of in metrics.values()),
    )


def _compare_samples(a: Config, b: Config, bootstrap: str) -> SampleDifferences:
    (frame_a, states_a), (frame_b, states_b) = _finals(a, bootstrap), _finals(b, bootstrap)
    both = frame_a.join(frame_b, on=_KEY, suffix="_b")
    only_a = frame_a.join(frame_b, on=_KEY, how="anti")
    only_b = frame_b.join(frame_a, on=_KEY, how="anti")
    differs = {
        name: both.filter(pl.col(name) != pl.col(f"{name}_b"))
        for name in ("labels", "delays", "values")
    }
    labels: Counter[str] = Counter()
    for left, right in differs["labels"].select("labels", "labels_b").iter_rows():
        ours, theirs = msgspec.json.decode(left), msgspec.json.decode(right)
        labels.update(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
    same = both.filter(
        pl.col("labels") == pl.col("labels_b"),
        pl.col("delays") == pl.col("delays_b"),
        pl.col("values") == pl.col("values_b"),
        pl.col("features") == pl.col("features_b"),
    )
    named = {"only_a": only_a, "only_b": only_b, **differs}
    return SampleDifferences(
        states={"a": states_a, "b": states_b},
        only_a=len(only_a),
        only_b=len(only_b),
        both=len(both),
        labels=dict(sorted(labels.items())),
        delays=len(differs["delays"]),
        values=len(differs["values"]),
        identical=len(same),
        first={
            name: rows.sort("event_ms")["impression_id"].head(_FIRST).to_list()
            for name, rows in named.items()
            if len(rows)
        },
    )


def _finals(config: Config, bootstrap: str) -> tuple[pl.DataFrame, dict[str, int]]:
    rows = []
    states: Counter[str] = Counter()
    for _, message in read_to_end(config, bootstrap, [SAMPLES]):
        head = decode_sample_head(message.value() or b"")
        states[head.state] += 1
        if head.state == "final":
            texts = (
                msgspec.json.encode(dict(sorted(pairs.items()))).decode()
                for pairs in (head.labels, head.delays_ms, head.values)
            )
            rows.append((head.impression_id, head.event_ms, *texts, bytes(head.features)))
    schema = {
        "impression_id": pl.String,
        "event_ms": pl.Int64,
        **dict.fromkeys(("labels", "delays", "values"), pl.String),
        "features": pl.Binary,
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row").unique(
        _KEY, keep="first", maintain_order=True
    )
    return frame, dict(sorted(states.items()))


def _compare_published(
    a: Config, b: Config, bootstrap: str
) -> tuple[dict[str, VectorDifferences], dict[str, dict[str, dict[str, Any] | None]]]:
    with (
        RepresentationReader(a, bootstrap, follow=False) as reader_a,
        RepresentationReader(b, bootstrap, follow=False) as reader_b,
    ):
        found: dict[str, VectorDifferences] = {
            kind: _compare_vectors(reader_a, reader_b, kind) for kind in KINDS
        }
        evaluations = [
            {} if reader.manifest is None else reader.manifest.evaluation
            for reader in (reader_a, reader_b)
        ]
    metrics = {
        task: {
            side: msgspec.to_builtins(of[task]) if task in of else None
            for side, of in zip("ab", evaluations, strict=True)
        }
        for task in sorted({*evaluations[0], *evaluations[1]})
    }
    return found, metrics


def _compare_vectors(
    reader_a: RepresentationReader, reader_b: RepresentationReader, kind: Kind
) -> VectorDifferences:
    (ids_a, matrix_a), (ids_b, matrix_b) = reader_a.matrix(kind), reader_b.matrix(kind)
    row_of = {entity: row for row, entity in enumerate(ids_b)}
    shared = [(row, row_of[entity]) for row, entity in enumerate(ids_a) if entity in row_of]
    result = VectorDifferences(
        only_a=len(ids_a) - len(shared),
        only_b=len(ids_b) - len(shared),
        both=len(shared),
        identical=0,
        cosine_min=None,
        cosine_mean=None,
        difference_max=None,
        first=[],
    )
    if not shared:
        return result
    rows_a, rows_b = (np.array(rows) for rows in zip(*shared, strict=True))
    left, right = matrix_a[rows_a].astype(np.float64), matrix_b[rows_b].astype(np.float64)
    if left.shape != right.shape:
        raise ValueError(
            f"{kind}: vectors of A have {left.shape[1]} elements, of B {right.shape[1]}"
        )
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots = (left * right).sum(axis=1)
    is_same = (left == right).all(axis=1)
    cosine = np.where(is_same, 1.0, dots / np.where(norms > 0, norms, 1.0))
    result.identical = int(is_same.sum())
    result.cosine_min, result.cosine_mean = float(cosine.min()), float(cosine.mean())
    result.difference_max = float(np.abs(left - right).max())
    worst = np.argsort(cosine, kind="stable")[:_FIRST]
    result.first = [ids_a[int(rows_a[n])] for n in worst if not is_same[n]]
    return result

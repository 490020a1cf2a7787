"""What fewer bits cost a model: NE and AUC beside float32, on the same stream.

rows       vectors in bfloat16 while they learn: progressive scores of the stream's second half
published  vectors learnt in float32 and published as bfloat16 or int8 (`publish.dtype`): scores of
           pairs that were not learnt, by the vectors as a reader decodes them

A factorisation of user and item (16 numbers each, row-wise Adagrad) learns from labels drawn by a
hidden factorisation of the same form; each batch is predicted before it is learnt. Both arms see
the same ids, labels and first vectors; five seeds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from measuring import Part, spread
from numpy.typing import NDArray
from workload import hashed, zipf

from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore
from topics.vector_encoding import VECTOR_DTYPES, VectorDtype, read_elements, write_elements

DIM, BATCH, UNIVERSE = 16, 2048, 2_000
HELD_OUT = 40
"""Batches that no arm learns."""
F32 = NDArray[np.float32]


def measure(quick: bool) -> Part:
    """Keys `NAME_ne_loss` (relative, positive = worse) and `NAME_auc_loss` against float32, for the
    names bfloat16 (rows), published_bfloat16 and published_int8."""
    seeds, batches = (3, 60) if quick else (5, 400)
    told = [_scored(seed, batches) for seed in range(seeds)]
    against = {"bfloat16": "float32"}
    against |= {f"published_{dtype}": "published_float32" for dtype in ("bfloat16", "int8")}
    loss: dict[str, dict[str, float]] = {}
    for name, base in against.items():
        loss[f"{name}_ne_loss"] = spread([each[name][0] / each[base][0] - 1 for each in told])
        loss[f"{name}_auc_loss"] = spread([each[base][1] - each[name][1] for each in told])
    detail = {
        **loss,
        "float32_ne": spread([each["float32"][0] for each in told]),
        "float32_auc": spread([each["float32"][1] for each in told]),
        "samples": BATCH * batches,
    }
    return Part({key: found["median"] for key, found in loss.items()}, {"row_precision": detail})


def _scored(seed: int, batches: int) -> dict[str, tuple[float, float]]:
    """(NE, AUC) by name: of both arms' own predictions, and of what the first one publishes."""
    wide, vectors = _arm(SetSpec(dim=DIM, init_scale=0.1), seed, batches)
    half, _ = _arm(SetSpec(dim=DIM, init_scale=0.1, dtype="bfloat16"), seed, batches)
    found = {"float32": wide, "bfloat16": half}
    stream = _Stream(seed)
    drawn = _Stream(10_000 + seed)  # its pairs and labels, the first one's truth
    drawn.truth = stream.truth
    held_out = [drawn.batch() for _ in range(HELD_OUT)]
    for dtype in VECTOR_DTYPES:
        read = np.stack([read_elements(*_written(each, dtype)) for each in vectors])
        read = read.reshape(2, UNIVERSE, DIM)
        logits = [(read[0, pair[0]] * read[1, pair[1]]).sum(1) - 1 for pair, _ in held_out]
        labels = [label for _, label in held_out]
        found[f"published_{dtype}"] = _scores(np.concatenate(logits), np.concatenate(labels))
    return found


def _written(vector: F32, dtype: VectorDtype) -> tuple[bytes, VectorDtype, float]:
    data, scale = write_elements(vector, dtype)
    return data, dtype, scale


class _Stream:
    """Pairs of user and item [2, B], and labels by a hidden factorisation."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(seed))
        drawn = self._random.standard_normal((2, UNIVERSE, DIM), np.float32)
        self.truth = drawn * np.float32(0.6)

    def batch(self) -> tuple[NDArray[np.int64], F32]:
        pair = np.stack([zipf(self._random, UNIVERSE, BATCH) for _ in range(2)])
        hidden = (self.truth[0, pair[0]] * self.truth[1, pair[1]]).sum(1) - 1
        drawn = self._random.random(BATCH) < 1 / (1 + np.exp(-hidden))
        return pair, drawn.astype(np.float32)


def _arm(spec: SetSpec, seed: int, batches: int) -> tuple[tuple[float, float], F32]:
    """((NE, AUC) of the predictions of the stream's second half, what users and then items have
    learnt float32[2 * UNIVERSE, D])."""
    stream = _Stream(seed)
    logits, labels = [], []
    with (
        tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder,
        EmbeddingStore.open(
            Path(folder) / "s",
            RowLayout({"shared": spec}),
            cache_rows_max=4 * UNIVERSE,
            owner="bench",
        ) as store,
    ):
        for n in range(batches):
            pair, label = stream.batch()
            ids = hashed(np.concatenate([pair[0], pair[1] + UNIVERSE]))
            lookup = store.lookup(ids, now_ms=0)
            user, item = np.split(store.gather_each(lookup, "shared"), 2)
            logit = (user * item).sum(1) - 1
            if n >= batches // 2:
                logits.append(logit)
                labels.append(label)
            error = (1 / (1 + np.exp(-logit)) - label)[:, None].astype(np.float32)
            grad = np.concatenate([error * item, error * user])
            store.update_each(lookup, "shared", grad, now_ms=0)
        learnt = store.peek(hashed(np.arange(2 * UNIVERSE, dtype=np.int64)), "shared")[0]
    return _scores(np.concatenate(logits), np.concatenate(labels)), learnt


def _scores(logit: F32, label: F32) -> tuple[float, float]:
    wide = logit.astype(np.float64)
    loss = (np.logaddexp(0, wide) - label * wide).mean()
    rate = float(label.mean())
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    ranks = np.empty(len(wide))
    ranks[np.argsort(wide, kind="stable")] = np.arange(1, len(wide) + 1)
    positives = label.sum()
    area = (ranks[label == 1].sum() - positives * (positives + 1) / 2) / positives
    return float(loss / entropy), float(area / (len(wide) - positives))

"""What rows in bfloat16 cost a model: progressive NE and AUC beside float32, on the same stream.

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

DIM, BATCH, UNIVERSE = 16, 2048, 2_000
F32 = NDArray[np.float32]


def measure(quick: bool) -> Part:
    """Keys `bfloat16_ne_loss` (relative, positive = worse) and `bfloat16_auc_loss`, both against
    float32."""
    seeds, batches = (3, 60) if quick else (5, 400)
    arms = {"float32": SetSpec(dim=DIM, init_scale=0.1)}
    arms["bfloat16"] = SetSpec(dim=DIM, init_scale=0.1, dtype="bfloat16")
    told = [{name: _arm(spec, s, batches) for name, spec in arms.items()} for s in range(seeds)]
    ne = [each["bfloat16"][0] / each["float32"][0] - 1 for each in told]
    auc = [each["float32"][1] - each["bfloat16"][1] for each in told]
    loss = {"bfloat16_ne_loss": spread(ne), "bfloat16_auc_loss": spread(auc)}
    detail = {
        **loss,
        "float32_ne": spread([each["float32"][0] for each in told]),
        "float32_auc": spread([each["float32"][1] for each in told]),
        "samples": BATCH * batches,
    }
    return Part({key: found["median"] for key, found in loss.items()}, {"row_precision": detail})


def _arm(spec: SetSpec, seed: int, batches: int) -> tuple[float, float]:
    """(NE, AUC) of the predictions of the stream's second half."""
    random = np.random.Generator(np.random.PCG64(seed))
    truth = random.standard_normal((2, UNIVERSE, DIM), np.float32) * np.float32(0.6)
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
            pair = np.stack([zipf(random, UNIVERSE, BATCH) for _ in range(2)])  # [2, B]
            hidden = (truth[0, pair[0]] * truth[1, pair[1]]).sum(1) - 1
            label = (random.random(BATCH) < 1 / (1 + np.exp(-hidden))).astype(np.float32)
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
    return _scores(np.concatenate(logits), np.concatenate(labels))


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

"""Effective rank of what every tapped layer says of samples: where in depth dimensions are lost.

Of tokens [B, T, D] per sample, as RankUp measures it (arXiv 2604.17878), and averaged; of a layer
[B, h] over the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embedding_store.reading import StoreReader
from settings.config import Config
from topics.sample import Sample
from trainer.analysis.measures import effective_rank
from trainer.analysis.tables import dense_weights, stored_moments
from trainer.batch import build_batch
from trainer.models.build import build_model
from trainer.parts import taps
from trainer.slots import SIDES, plan_slots
from trainer.tensors import batch_tensors

CPU = torch.device("cpu")


def layer_ranks(
    reader: StoreReader, config: Config, samples: Sequence[Sample]
) -> dict[str, dict[str, Any]]:
    """Layer -> {"effective_rank", "of": its ceiling}, in order of depth; samples as given."""
    plan = plan_slots(config)
    model = build_model(plan, config)
    weights = dense_weights(reader)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    batch = build_batch(samples, plan)
    keys, inverse = np.unique(
        np.concatenate([batch.parts[side].keys for side in SIDES]), return_inverse=True
    )
    records, found = reader.rows(keys)
    rows = {}
    for name, dim in model.sets.dims.items():
        vectors = np.zeros((len(keys), dim), np.float32)  # a value without a row: zeros
        vectors[found] = reader.vectors(name, records)
        rows[name] = torch.from_numpy(vectors)
    model.tap.seen = {}
    with torch.no_grad():
        model(batch_tensors(batch, inverse, stored_moments(reader, plan), CPU), rows)
    ranks: dict[str, dict[str, Any]] = {}
    for name, seen in model.tap.seen.items():
        if seen.ndim == 3:
            rank = float(taps.effective_rank(seen).mean())
            ranks[name] = {"effective_rank": rank, "of": min(seen.shape[1:])}
        elif seen.ndim == 2 and min(seen.shape) > 1:
            ranks[name] = {"effective_rank": effective_rank(seen.numpy()), "of": min(seen.shape)}
    return ranks

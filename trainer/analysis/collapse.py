"""Dimensional collapse: information abundance of every slot's table, effective rank of layers.

Of a table: sum of singular values over the largest (arXiv 2310.04400), per slot and set, and of
its sub-embedding towards every other slot where the model has full cross layers: E_i W_ij^T of the
first one. Low for one slot towards another = the partner's collapse has been passed on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from embedding_store.reading import StoreReader
from settings.config import Config
from trainer.analysis.activations import layer_ranks
from trainer.analysis.measures import effective_rank, information_abundance
from trainer.analysis.tables import dense_weights, final_samples, grams
from trainer.parts.sets import SHARED
from trainer.slots import plan_slots, table_of

SAMPLES = 2_000
FIRST_CROSS = "cross.layers.0.weight"


def collapse(
    reader: StoreReader, config: Config | None, samples: Path | None = None
) -> dict[str, Any]:
    """{"tables": {slot: {set: {information_abundance, dim, rows}}}, "layers": {weight:
    {effective_rank, of}}, "towards": {slot: {partner: information_abundance}}}; with `samples`
    (and the config) also "activations": {layer: {effective_rank, of}}."""
    found, rows = grams(reader)
    weights = dense_weights(reader)
    tables: dict[str, dict[str, Any]] = {}
    for (slot, name), gram in sorted(found.items()):
        tables.setdefault(slot, {})[name] = {
            "information_abundance": information_abundance(gram),
            "dim": len(gram),
            "rows": rows[slot],
        }
    layers = {
        name: {"effective_rank": effective_rank(tensor.numpy()), "of": min(tensor.shape)}
        for name, tensor in sorted(weights.items())
        if tensor.ndim == 2 and min(tensor.shape) > 1
    }
    towards: dict[str, dict[str, float]] = {}
    if config is not None and FIRST_CROSS in weights:
        names = [table_of(slot) for slot in plan_slots(config).slots]
        cross = weights[FIRST_CROSS].numpy().astype(np.float64)  # [F * D, F * D]
        dim = cross.shape[0] // len(names)
        if cross.shape[0] == dim * len(names):
            for i, slot in enumerate(names):
                gram_i = found.get((slot, SHARED))
                if gram_i is None or len(gram_i) != dim:
                    continue
                # x0_j * (W x)_j: block (j, i) carries slot i to slot j
                towards[slot] = {
                    partner: information_abundance(block @ gram_i @ block.T)
                    for j, partner in enumerate(names)
                    if j != i
                    for block in [cross[j * dim : (j + 1) * dim, i * dim : (i + 1) * dim]]
                }
    activations: dict[str, Any] = {}
    if config is not None and samples is not None:
        activations = layer_ranks(reader, config, final_samples(samples, SAMPLES))
    return {
        "tables": tables,
        "layers": layers,
        "towards": towards,
        "activations": activations,
    }

"""fbgemm-gpu-cpu: a table-batched embedding with exact row-wise Adagrad, on the CPU, full mode.

Dense row numbers, so no index; a gradient per id, summed and applied in the backward pass. One id
a bag, pooled by sum: the faster of its modes here, unpooled took several times as long.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import fbgemm_gpu  # noqa: F401  # registers the operators
import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from turns import Step, serve
from workload import EPS, LR, batches, gradients


def prepare(request: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
    torch.set_num_threads(1)
    keys, dim, ids = request["keys"], request["dim"], request["ids"]
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(keys, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LR,
        eps=EPS,
        pooling_mode=PoolingMode.SUM,
    )
    table.init_embedding_weights_uniform(-0.01, 0.01)
    indices = [torch.from_numpy(b) for b in batches(keys, request["batches"], ids)]
    offsets = torch.arange(ids + 1, dtype=torch.int64)
    grad = torch.from_numpy(gradients(ids, dim))

    def step(n: int) -> None:
        table(indices[n % len(indices)], offsets).backward(grad)

    version = importlib.metadata.version("fbgemm-gpu-cpu")
    return step, {"version": version, "mode": "full", "numpy": np.__version__}


serve(prepare)

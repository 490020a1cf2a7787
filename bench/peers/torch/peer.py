"""torch's own sparse embedding, in the project's environment: full mode, dense row numbers.

`optimizer` of the request is "adagrad" or "sparse_adam"; both keep elementwise state.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from turns import Step, serve
from workload import LR, batches, gradients

OPTIMIZERS = {"adagrad": torch.optim.Adagrad, "sparse_adam": torch.optim.SparseAdam}


def prepare(request: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Sparse invariant checks")  # once per run, by torch itself
    keys, dim, ids = request["keys"], request["dim"], request["ids"]
    table = nn.Embedding(
        keys, dim, sparse=True, _weight=torch.zeros(keys, dim).uniform_(-0.01, 0.01)
    )
    chosen = OPTIMIZERS[request["optimizer"]](table.parameters(), lr=LR)
    wanted = [torch.from_numpy(b) for b in batches(keys, request["batches"], ids)]
    grad = torch.from_numpy(gradients(ids, dim))

    def step(n: int) -> None:
        chosen.zero_grad(set_to_none=True)
        table(wanted[n % len(wanted)]).backward(grad)
        chosen.step()

    return step, {"version": torch.__version__, "mode": "full"}


serve(prepare)

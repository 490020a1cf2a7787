"""How rows and dense weights learn: one choice for all embedding sets, others for single ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from settings.section import Section

SparseOptimizer = Literal["rowwise_adagrad", "adagrad", "adam", "ftrl", "sgd"]
RowType = Literal["float32", "bfloat16"]
Rate = Annotated[float, Field(gt=0, le=10)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Penalty = Annotated[float, Field(ge=0)]
Scale = Annotated[float, Field(ge=0, le=10)]


class SetOptimizerConfig(Section):
    """What a set does otherwise than `optimizer` says; an option that is left out is as there."""

    sparse: SparseOptimizer | None = None
    sparse_lr: Rate | None = None
    sparse_eps: Annotated[float, Field(gt=0)] | None = None
    init_scale: Scale | None = None
    beta1: Decay | None = None
    beta2: Decay | None = None
    l1: Penalty | None = None
    l2: Penalty | None = None
    beta: Penalty | None = None
    dtype: RowType | None = None


class OptimizerConfig(Section):
    sparse: SparseOptimizer = "rowwise_adagrad"
    """How rows learn (formulas: `embedding_store/optimizers.py`). Each row and set has state of its
    own: rowwise_adagrad 1 number, adagrad D, adam 2 D + 1, ftrl 2 D, sgd none."""
    sparse_lr: Rate = 0.05
    sparse_eps: Annotated[float, Field(gt=0)] = 1e-8
    init_scale: Scale = 0.01
    """New rows start uniform in [-init_scale, init_scale], drawn from the key alone."""
    beta1: Decay = 0.9
    """adam"""
    beta2: Decay = 0.999
    """adam"""
    l1: Penalty = 0.0
    """ftrl: a weight whose |z| stays within this is exactly zero."""
    l2: Penalty = 0.0
    """ftrl"""
    beta: Penalty = 1.0
    """ftrl: added to sqrt(n) in the rate."""
    dtype: RowType = "float32"
    """Of rows' vectors in memory and on disk; optimizer state is float32. bfloat16 halves vectors
    and rounds stochastically, so that small steps are not lost."""
    sets: dict[str, SetOptimizerConfig] = Field(default_factory=dict)
    """`[optimizer.sets.NAME]`: other choices for one of the model's embedding sets."""
    dense_lr: Rate = 0.001

    def of_set(self, name: str) -> dict[str, Any]:
        """Keyword arguments of the store's `SetSpec` for the set, its width apart."""
        own = self.sets.get(name, SetOptimizerConfig())
        chosen = {
            option: getattr(self, option) if value is None else value for option, value in own
        }
        renamed = {"sparse": "optimizer", "sparse_lr": "lr", "sparse_eps": "eps"}
        return {renamed.get(option, option): value for option, value in chosen.items()}

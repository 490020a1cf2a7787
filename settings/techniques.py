"""Training techniques beside the model: the section [technique]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from settings.section import Section


class TechniqueConfig(Section):
    ranking_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the pair loss over the batch beside cross entropy (1 - alpha of the paper)."""
    pairs_max: Annotated[int, Field(ge=1)] = 100_000
    """Pairs per batch and task."""
    repeat_weight: Annotated[float, Field(ge=0)] = 0.0
    """c of 1 + c log(1 + n): weight of a row whose ad the user has been shown n times before."""
    running_rates: bool = False
    """Every row counts its value's matured impressions and conversions, and the smoothed rates are
    inputs beside the model, whose logits then start at the rate of all. Costs a look-up per final
    and 4 bytes per task and row."""
    rates_dim: Annotated[int, Field(ge=1, le=4096)] = 32
    """Hidden width of the network that reads them."""
    positions: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Positions with a bias of their own in training; 0 = none. Later ones share the last."""
    explore: Literal["none", "laplace", "ensemble"] = "none"
    """Uncertainty of each logit: a Bayesian last layer, or heads on bootstraps of the stream."""
    prior_precision: Annotated[float, Field(gt=0)] = 1.0
    """laplace: of a last layer's weight before any sample."""
    heads: Annotated[int, Field(ge=2, le=64)] = 8
    """ensemble: heads per task."""
    explored_kept: Annotated[int, Field(ge=1)] = 100_000
    """Newest impressions whose mean, deviation and served score are kept in the store."""

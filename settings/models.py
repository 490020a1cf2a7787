"""Options of each model: the sections [model.NAME]. Widths that all share are in [model]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from settings.section import Count, Section, Width, Widths


class LrOptions(Section):
    """FTRL-proximal (McMahan et al. 2013) on every row's weights."""

    alpha: Annotated[float, Field(gt=0, le=10)] = 0.1
    beta: Annotated[float, Field(ge=0)] = 0.001
    """Far below the paper's 1: gradients are means over a batch, so a row's are that much smaller."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """Weights whose |z| stays below it are exactly zero."""
    l2: Annotated[float, Field(ge=0)] = 0.0


class FmOptions(Section):
    factor_dim: Width = 16
    """Width of the factors; the linear weights have a set of their own, one per task."""


class DcnOptions(Section):
    cross_layers: Annotated[int, Field(ge=0, le=10)] = 3
    hidden_dims: Widths = (256, 128)
    structure: Literal["stacked", "parallel"] = "stacked"
    """stacked = the MLP reads the cross layers' output; parallel = both read the embeddings."""


class ExpertOptions(Section):
    """What models of experts and gates share."""

    expert_dims: Widths = (64, 32)
    gate_dims: Widths = ()
    """Hidden widths of a gate; none = a linear gate."""
    tower_dims: Widths = (32,)
    """Hidden widths of each task's tower."""


class MmoeOptions(ExpertOptions):
    experts: Count = 4


class PleOptions(ExpertOptions):
    shared_experts: Count = 2
    task_experts: Count = 1
    levels: Annotated[int, Field(ge=1, le=8)] = 1

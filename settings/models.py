"""Options of each model: the sections [model.NAME]. Widths that all share are in [model]."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from settings.section import Count, Section, Width, Widths


class LrOptions(Section):
    """FTRL-proximal (McMahan et al. 2013) on every row's weights."""

    alpha: Annotated[float, Field(gt=0, le=10)] = 0.1
    beta: Annotated[float, Field(ge=0)] = 0.001
    """Far below the paper's 1: gradients are means over a batch, so much smaller than a row's."""
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


class StemOptions(ExpertOptions):
    shared_experts: Count = 2
    task_experts: Count = 1
    levels: Annotated[int, Field(ge=1, le=8)] = 1
    strict: bool = True
    """With several levels: no gradient of another task through the shared input between levels."""


class StemAuxiliaryOptions(ExpertOptions):
    main: tuple[str, ...] = ()
    """The kinds that see every expert; none named = the first kind."""
    task_experts: Count = 1
    detach: bool = True
    """Whether main tasks only look at auxiliary experts, or teach them, too."""


class AmeOptions(ExpertOptions):
    widths: Widths = (8, 16, 32)
    """One embedding set of each width."""
    experts: Count = 1
    """Experts per set."""

    @field_validator("widths")
    @classmethod
    def _widths_differ(cls, widths: Widths) -> Widths:
        if len(set(widths)) != len(widths):
            raise ValueError("each width once: a set is named by its width")
        return widths


class CrocodileOptions(Section):
    experts: Annotated[int, Field(ge=2, le=64)] = 3
    """Embedding sets, each with its own expert."""
    expert_dims: Widths = (64, 32)
    prior_dim: Width = 8
    """Width of the gate's own embeddings of user, item and domain."""
    tower_dim: Width = 32
    alpha: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the covariance loss, which is divided by N here: the paper's times the batch."""
    covariance_rows: Annotated[int, Field(ge=0)] = 0
    """Rows of a batch that it is computed on, from the first; 0 = all. 32 cost no quality there."""
    covariance_rows_min: Annotated[int, Field(ge=2)] = 32
    """Batches with fewer rows have no covariance loss."""


class MultiEmbeddingOptions(Section):
    interactions: Annotated[
        tuple[Literal["dcn", "fm", "gwpfm", "ipnn", "mlp"], ...], Field(min_length=1, max_length=64)
    ] = ("dcn", "fm", "mlp")
    """One embedding set each."""
    expert_dims: Widths = (64,)
    cross_layers: Annotated[int, Field(ge=0, le=10)] = 2
    merge: Literal["mean", "scalars", "gate"] = "mean"
    gate_dims: Widths = ()
    tower_dims: Widths = (32,)
    tables: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Slot -> how many of the sets it has; a slot that is not named has all."""


class GwpfmOptions(Section):
    hidden_dims: Widths = (64, 32)


class TimOptions(Section):
    time_code: Literal["position", "gap"] = "gap"
    """gap = the octave of the time from the behaviour to now; position = its rank from the newest.
    Gaps tell more where clicks are rare."""
    cross_layers: Annotated[int, Field(ge=0, le=10)] = 2
    hidden_dims: Widths = (64, 32)


class RankMixerOptions(Section):
    token_dim: Width = 48
    """D; the number of tokens must divide it."""
    tokens: Annotated[int, Field(ge=0, le=1024)] = 0
    """T; 0 = the largest that divides token_dim, at most 16 and one per slot."""
    layers: Count = 2
    ratio: Count = 2
    """Hidden width of a token's feed-forward layer over token_dim."""
    experts: Annotated[int, Field(ge=0, le=64)] = 0
    """Feed-forward experts per token under ReLU routing; 0 = one, not routed."""
    router_l1: Annotated[float, Field(ge=0)] = 0.0001
    tower_dims: Widths = (32,)


class RankUpOptions(Section):
    token_dim: Width = 48
    """D; the number of all tokens, tasks' and global ones included, must divide it."""
    groups: Annotated[int, Field(ge=0, le=1024)] = 0
    """Tokens made of slots; 0 = as many as fit."""
    permutation_seed: Annotated[int, Field(ge=0)] = 0
    """The order in which slots are put into groups; saved with the weights."""
    sets: Count = 2
    """Independent embedding sets."""
    tables: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Slot -> how many of the sets it has; a slot that is not named has all."""
    global_by: Literal["none", "mlp", "fm", "dcn"] = "mlp"
    cross_dim: Annotated[int, Field(ge=0, le=512)] = 8
    """Width of the two-tower model behind the crossed token; 0 = no such token."""
    layers: Count = 2
    ratio: Count = 2
    tower_dims: Widths = (32,)


class CrossDistilOptions(Section):
    tasks: tuple[str, ...] = ()
    """The two kinds that teach each other, such as buy and like; none named = the first two."""
    bottom_dims: Widths = (64, 32)
    tower_dims: Widths = (32,)
    within: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.5, 0.5)
    """Weight of pairs that differ in the other task alone: among positives, among negatives."""
    distilled: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the teacher in a student's loss."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    margin: Annotated[float, Field(ge=0)] = 0.0
    """A teacher's logit is held on the label's side, at least so far from zero."""


class Lfm4AdsOptions(Section):
    ad_domains: tuple[str, ...] = ()
    """Domains of ads; samples of the others go through a content branch of their own, and CR is
    always the ad branch's. None named = one branch for all."""
    cr_layer: str = ""
    """The layer that CR is: x0, cross1, cross2, ..., mix1, mix2, ...; "" = the last mix layer;
    all = one after another, for `headwater transfer choose-layer`."""


def token_count(options: RankMixerOptions, slots: int) -> int:
    """RankMixer's T. Raises ValueError if it does not divide D."""
    if not options.tokens:
        return max(t for t in range(1, min(slots, 16) + 1) if options.token_dim % t == 0)
    return _dividing(options.tokens, options.token_dim, "model.rankmixer")


def rankup_groups(options: RankUpOptions, slots: int, tasks: int) -> int:
    """RankUp's tokens that are made of slots. Raises ValueError if all tokens do not divide D."""
    others = tasks + (options.global_by != "none") + (options.cross_dim > 0)
    if options.groups > slots:
        raise ValueError(f"model.rankup.groups: expected at most {slots}, one per slot")
    if options.groups:
        return _dividing(options.groups + others, options.token_dim, "model.rankup") - others
    fitting = [g for g in range(1, slots + 1) if options.token_dim % (g + others) == 0]
    return fitting[-1] if fitting else _dividing(1 + others, options.token_dim, "model.rankup")


def _dividing(tokens: int, dim: int, where: str) -> int:
    if dim % tokens:
        near = max(1, round(dim / tokens)) * tokens
        raise ValueError(
            f"{where}.token_dim: expected a multiple of {tokens}, the number of tokens, got {dim}; "
            f"the nearest is {near}"
        )
    return tokens


ALL_LAYERS = "all"


def cr_layers(model: Any) -> list[str]:
    """Names of the layers that LFM4Ads' CR may be."""
    cross = [f"cross{n + 1}" for n in range(model.cross_layers)]
    return ["x0", *cross, *(f"mix{n + 1}" for n in range(len(model.mix_dims)))]


def check_model(
    model: Any, kinds: Sequence[str], slots: Mapping[str, str], domains: Sequence[str]
) -> None:
    """Raises ValueError, with what would do, for options that do not fit the config's kinds,
    slots {name: type} and domains."""
    for kind in model.stem_al.main:
        one_of("model.stem_al.main", kind, kinds)
    for name in ("multi_embedding", "rankup"):
        for slot in getattr(model, name).tables:
            one_of(f"model.{name}.tables", slot, list(slots))
    for kind in model.crossdistil.tasks:
        one_of("model.crossdistil.tasks", kind, kinds)
    if model.crossdistil.tasks and len(set(model.crossdistil.tasks)) != 2:
        raise ValueError("model.crossdistil.tasks: expected two different kinds")
    for domain in model.lfm4ads.ad_domains:
        one_of("model.lfm4ads.ad_domains", domain, domains)
    if model.lfm4ads.cr_layer:
        layers = [*cr_layers(model), ALL_LAYERS]
        one_of("model.lfm4ads.cr_layer", model.lfm4ads.cr_layer, layers)
    if model.name == "crossdistil" and len(kinds) < 2:
        raise ValueError("model.name: crossdistil needs two kinds")
    if model.name == "rankmixer":
        token_count(model.rankmixer, len(slots))
    elif model.name == "rankup":
        rankup_groups(model.rankup, len(slots), len(kinds))
    elif model.name == "tim" and "sequence" not in slots.values():
        raise ValueError("model.name: tim needs at least one slot of type 'sequence'")


def one_of(where: str, name: str, known: Sequence[str]) -> None:
    """Raises ValueError, with the nearest name, unless `name` is known."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{where}: expected one of {', '.join(known)}, got {name!r}{hint}")

"""Config -> model, freshly initialised from the seed."""

from __future__ import annotations

import torch

from settings.config import Config
from trainer.models.ame import Ame
from trainer.models.catalogue import check_model_name
from trainer.models.crocodile import Crocodile
from trainer.models.crossdistil import CrossDistil
from trainer.models.dcn import Dcn
from trainer.models.fm import FactorisationMachine
from trainer.models.gwpfm import Gwpfm
from trainer.models.lfm4ads import Lfm4Ads
from trainer.models.lr import LogisticRegression
from trainer.models.mmoe import Mmoe
from trainer.models.model import Model
from trainer.models.multi_embedding import MultiEmbedding
from trainer.models.ple import Ple
from trainer.models.rankmixer import RankMixer
from trainer.models.rankup import RankUp
from trainer.models.shared_bottom import SharedBottom
from trainer.models.stem import Stem
from trainer.models.stem_al import StemAuxiliary
from trainer.models.tim import Tim
from trainer.parts.sets import RowSets
from trainer.slots import Plan

_CLASSES: dict[str, type[Model]] = {
    "ame": Ame,
    "crocodile": Crocodile,
    "gwpfm": Gwpfm,
    "multi_embedding": MultiEmbedding,
    "rankmixer": RankMixer,
    "rankup": RankUp,
    "stem": Stem,
    "stem_al": StemAuxiliary,
    "tim": Tim,
    "crossdistil": CrossDistil,
    "dcn": Dcn,
    "fm": FactorisationMachine,
    "lfm4ads": Lfm4Ads,
    "lr": LogisticRegression,
    "mmoe": Mmoe,
    "ple": Ple,
    "shared_bottom": SharedBottom,
}


def row_sets(plan: Plan, config: Config) -> RowSets:
    """The sets that the model wants of the store's rows."""
    check_model_name(config.model.name)
    return _CLASSES[config.model.name].row_sets(plan, config.model)


def build_model(plan: Plan, config: Config) -> Model:
    """The model on the CPU. Seeds torch's generator: the weights depend on the seed alone.

    Raises ConfigError for an unknown name, or options that do not fit the plan.
    """
    check_model_name(config.model.name)
    torch.manual_seed(config.trainer.seed)
    return _CLASSES[config.model.name](plan, config.model)

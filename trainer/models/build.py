"""Config -> model, freshly initialised from the seed."""

from __future__ import annotations

import torch

from settings.config import Config
from trainer.models.catalogue import check_model_name
from trainer.models.lfm4ads import Lfm4Ads
from trainer.models.lr import LogisticRegression
from trainer.models.parts import Model
from trainer.models.shared_bottom import SharedBottom
from trainer.slots import Plan

_CLASSES = {"lfm4ads": Lfm4Ads, "lr": LogisticRegression, "shared_bottom": SharedBottom}


def row_dim(config: Config) -> int:
    """Width of the `shared` set that the model wants of the store's rows."""
    return len(config.tasks) if config.model.name == "lr" else config.model.embedding_dim


def build_model(plan: Plan, config: Config) -> Model:
    """The model on the CPU. Seeds torch's generator: the weights depend on the seed alone."""
    check_model_name(config.model.name)
    torch.manual_seed(config.trainer.seed)
    return _CLASSES[config.model.name](plan, config.model)

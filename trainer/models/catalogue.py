"""The models that a config can name, each with its paper. Imports no torch: the CLI reads it."""

from __future__ import annotations

import difflib

from settings.load import ConfigError

MODELS: dict[str, str] = {
    "ame": "AME: Asymmetric Multi-Embedding (arXiv 2403.00793)",
    "crocodile": "Crocodile: Cross-Expert Covariance Loss, multi-domain (arXiv 2405.12706)",
    "crossdistil": "CrossDistil: Cross-Task Knowledge Distillation (arXiv 2202.09852)",
    "dcn": "DCNv2: Deep & Cross Network V2 (arXiv 2008.13535)",
    "fm": "Factorisation Machines (Rendle, ICDM 2010)",
    "gwpfm": "GwPFM: Group-weighted Part-aware FM (arXiv 2403.00793)",
    "lfm4ads": "LFM4Ads: Large Foundation Model for Ads, upstream triple tower (arXiv 2508.14948)",
    "lr": "Logistic regression on the hashed slots, FTRL-proximal (McMahan et al., KDD 2013)",
    "mmoe": "MMoE: Multi-gate Mixture-of-Experts (Ma et al., KDD 2018)",
    "multi_embedding": "Multi-Embedding with heterogeneous experts (arXiv 2310.04400, 2403.00793)",
    "ple": "PLE: Progressive Layered Extraction (Tang et al., RecSys 2020)",
    "rankmixer": "RankMixer: token mixing and per-token FFN (arXiv 2507.15551)",
    "rankup": "RankUp: tokens that keep their rank (arXiv 2604.17878)",
    "shared_bottom": "Shared-Bottom multi-task MLP (Caruana, Machine Learning 28, 1997)",
    "stem": "STEM-Net: Shared and Task-specific EMbeddings, AFTB (arXiv 2308.13537)",
    "stem_al": "STEM-AL: STEM for Auxiliary Learning (arXiv 2308.13537, 2403.00793)",
    "tim": "TIM: Temporal Interest Module (arXiv 2308.08487)",
}


def check_model_name(name: str) -> None:
    """Raises ConfigError that names the nearest model for a name that is not in the catalogue."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"model.name: expected one of {', '.join(MODELS)}, got {name!r}{hint}")

"""The models that a config can name, each with its paper. Imports no torch: the CLI reads it."""

from __future__ import annotations

MODELS: dict[str, str] = {
    "lfm4ads": "LFM4Ads: Large Foundation Model for Ads, upstream triple tower (arXiv 2508.14948)",
    "lr": "Logistic regression on the hashed slots (McMahan et al., KDD 2013, without FTRL)",
    "shared_bottom": "Shared-Bottom multi-task MLP (Caruana, Machine Learning 28, 1997)",
}

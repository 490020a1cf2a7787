"""The config's words for admission and expiry as the store takes them."""

from __future__ import annotations

from embedding_store.admission import AdmissionFilter, AdmissionPolicy, AdmissionRule
from embedding_store.expiry import ExpiryPolicy, ExpiryRule
from settings.lifetimes import (
    AdmissionConfig,
    AdmissionSlotConfig,
    ExpiryConfig,
    ExpirySlotConfig,
)


def admission_filter(config: AdmissionConfig) -> AdmissionFilter | None:
    """Section `admission`, for `EmbeddingStore.open`; None = every value gets a row at once."""
    policy = AdmissionPolicy(
        default=_admission_rule(config),
        slots={slot: _admission_rule(rule) for slot, rule in config.slots.items()},
        window_s=max(1, config.window // 1000),
        keys_max=config.keys_max,
    )
    return None if policy.admits_all else AdmissionFilter(policy)


def expiry_policy(config: ExpiryConfig) -> ExpiryPolicy | None:
    """Section `expiry`; None if no row ever goes."""
    policy = ExpiryPolicy(
        default=_expiry_rule(config),
        slots={slot: _expiry_rule(rule) for slot, rule in config.slots.items()},
    )
    return None if policy.keeps_all else policy


def _admission_rule(rule: AdmissionSlotConfig) -> AdmissionRule:
    return AdmissionRule(policy=rule.policy, count=rule.count, probability=rule.probability)


def _expiry_rule(rule: ExpirySlotConfig) -> ExpiryRule:
    return ExpiryRule(
        ttl_s=_seconds(rule.ttl),
        rows_max=rule.rows_max,
        score_min=rule.score_min,
        half_life_s=_seconds(rule.half_life),
    )


def _seconds(duration_ms: int | None) -> int | None:
    return None if duration_ms is None else max(1, duration_ms // 1000)

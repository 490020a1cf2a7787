"""Which values get a row, and when rows go: sections `admission` and `expiry` of the config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from settings.duration import DurationMs
from settings.section import Name, Section


class AdmissionSlotConfig(Section):
    policy: Literal["always", "count", "probability"] = "always"
    """always = a row at first sight; count = at the `count`-th occurrence within the window;
    probability = each occurrence gets the row with this chance, drawn from key and count. Until
    then a value reads as zeros and is not learnt."""
    count: Annotated[int, Field(ge=1, le=65535)] = 2
    probability: Annotated[float, Field(gt=0, le=1)] = 0.1


class AdmissionConfig(AdmissionSlotConfig):
    """Which values earn a row; a slot's own section replaces the policy for its rows."""

    window: DurationMs = 86_400_000
    """Event time over which occurrences count; it slides in quarters."""
    keys_max: Annotated[int, Field(ge=8, le=2**31)] = 1_048_576
    """Values remembered that have no row yet: about 32 bytes each. More are forgotten, those seen
    least first."""
    slots: dict[Name, AdmissionSlotConfig] = Field(default_factory=dict)


class ExpirySlotConfig(Section):
    ttl: DurationMs | None = None
    """Rows that no sample touched for longer than this (event time) go."""
    rows_max: Annotated[int, Field(ge=1)] | None = None
    """Of a slot's rows at most so many stay: those of the highest score, or, without a half-life,
    the newest touched."""
    score_min: Annotated[float, Field(gt=0)] | None = None
    """Rows of a lower score go: score = occurrences * 2^-(time untouched / half_life)."""
    half_life: DurationMs | None = None

    @model_validator(mode="after")
    def _a_score_decays(self) -> ExpirySlotConfig:
        if self.score_min is not None and not self.half_life:
            raise ValueError('score_min needs half_life = "<duration>"')
        return self


class ExpiryConfig(ExpirySlotConfig):
    """Which rows have had their time; a slot's own section replaces all of it for its rows."""

    every: DurationMs = 3_600_000
    """Event time from one sweep to the next."""
    slice_rows: Annotated[int, Field(ge=100)] = 5_000
    """Rows that one commit looks at, about 2 us each; a sweep goes on at the next commit. Under
    cut_by = "count" a sweep is not sliced."""
    slots: dict[Name, ExpirySlotConfig] = Field(default_factory=dict)

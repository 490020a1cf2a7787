"""What is published, how, and when not: section `publish` of the config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from settings.duration import DurationMs
from settings.section import Section


class GateConfig(Section):
    """Bounds on the progressive metrics of the newest two windows. A bound that is not set holds
    nothing; while one is broken by any task, learning goes on and nothing new is published."""

    pcoc_min: Annotated[float, Field(gt=0, le=1)] | None = None
    """Predicted over observed conversions, below which versions are held."""
    pcoc_max: Annotated[float, Field(ge=1)] | None = None
    ne_max: Annotated[float, Field(gt=0)] | None = None
    """Normalised entropy; 1 = no better than the base rate."""
    drift_hold: DurationMs | None = None
    """Event time for which versions are held after an alarm on NE or calibration."""
    positives_min: Annotated[int, Field(ge=1)] = 200
    """A task with fewer positives in these windows is not judged: its metrics are noise."""

    @property
    def is_set(self) -> bool:
        """Whether anything can be held."""
        bounds = (self.pcoc_min, self.pcoc_max, self.ne_max, self.drift_hold)
        return any(bound is not None for bound in bounds)


class PublishConfig(Section):
    every_commits: Annotated[int, Field(ge=1)] = 1
    """A version is cut every this many commits that touched an entity."""
    vectors_max: Annotated[int, Field(ge=1)] | None = None
    """Vectors of one version; beyond it those that changed most, times their traffic, go first and
    the others wait. None = all that were touched. Set `age_max`, too, to bound the wait."""
    age_max: DurationMs | None = None
    """Event time within which every vector is computed and published anew, touched or not, beside
    `vectors_max`; up to twice that while new entities come in. None = only what was touched."""
    cross_half_life: DurationMs = 86_400_000
    """Half-life of the time decay in the per-user and per-item aggregates of CR."""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """How vectors are written (`topics.vector_encoding`): half or a quarter of the bytes for a
    known loss; readers of this release read all three."""
    basis: Literal["free", "anchored"] = "free"
    """anchored = vectors are turned back, by one rotation per kind and version, onto a fixed set of
    anchor entities (`trainer.basis`), so that models downstream outlive a retraining upstream."""
    basis_from: str = ""
    """anchored, and a store that begins: topic prefix of the stack whose published vectors give the
    basis, so that a replayed or retrained stack can take over from it. Empty = its own."""
    manifests_kept: Annotated[int, Field(ge=1)] = 1000
    """Versions that a rollback can name, as far as `rollback_window` reaches."""
    rollback_window: DurationMs = 3_600_000
    """Wall time for which no record of the representation topics is compacted away, so that every
    version within it can be read back whole. Topics keep what they were created with."""
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _window_leaves_readers_time(self) -> PublishConfig:
        if self.rollback_window < 60_000:
            raise ValueError("rollback_window: at least 60s, or slow readers miss versions")
        return self

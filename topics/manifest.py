"""Topic `manifest`: the record that closes one version. Key: the version, decimal; value: JSON.

A version's records and its manifest are written in one transaction. `end_offsets` says, for every
partition of every representation topic, how far a reader must have read to hold that version whole:
all records below that offset are visible, none at or above it is.
"""

from __future__ import annotations

import msgspec

from topics.errors import RecordInvalid, WireVersionError

SCHEMA = 1

PartitionOffsets = dict[str, dict[int, int]]
"""Topic (without prefix) -> partition -> offset of the next record."""


class TaskEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Progressive metrics of one task as of the version; None where they are undefined."""

    auc: float | None
    ne: float | None
    pcoc: float | None
    samples: int
    positives: int
    drifted_ms: int | None = None
    """Event time of the newest alarm on its entropy or calibration."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One version. Times are Unix milliseconds."""

    version: int
    step: int
    created_ms: int
    """When the version was cut from committed state."""
    event_ms: int
    """Newest event learnt from."""
    watermark_ms: int
    """The join's watermark on the newest sample learnt from; -1 before the first."""
    counts: dict[str, int]
    """Records by kind, and "tombstones"."""
    source_offsets: PartitionOffsets
    """Offsets of the next sample that the version has not learnt from."""
    evaluation: dict[str, TaskEvaluation]
    end_offsets: PartitionOffsets = {}
    schema: int = SCHEMA
    source_version: int | None = None
    """The older version whose content this one repeats: a rollback's, or of a hold that begins."""
    reason: str | None = None
    """Why publication is held from here, was held until here, or went back."""


class _Schema(msgspec.Struct):
    schema: int


_manifest = msgspec.json.Decoder(Manifest)
_schema = msgspec.json.Decoder(_Schema)
_encoder = msgspec.json.Encoder()


def manifest_key(version: int) -> bytes:
    return b"%d" % version


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON, one line."""
    return _encoder.encode(manifest)


def decode_manifest(value: bytes) -> Manifest:
    """Raises WireVersionError for a newer schema, RecordInvalid for anything else that is wrong."""
    try:
        schema = _schema.decode(value).schema
        if schema != SCHEMA:
            raise WireVersionError(
                f"expected manifests of schema {SCHEMA}, got {schema}: "
                "upgrade this reader to the release of headwater that writes them"
            )
        return _manifest.decode(value)
    except msgspec.DecodeError as error:
        raise RecordInvalid(f"not a manifest: {error}") from error

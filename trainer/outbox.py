"""Versions that are committed but not known to be published (store space `outbox`).

A version's records are kept encoded, so that a crash between commit and publication publishes the
very same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from embedding_store.store import EmbeddingStore
from topics.manifest import Manifest, decode_manifest, encode_manifest
from topics.publisher import Record

SPACE = "outbox"


class _Entry(msgspec.Struct, array_like=True):
    records: list[tuple[str, bytes, bytes | None, list[tuple[str, bytes]]]]
    manifest: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Entry)


class Outbox:
    """Stages versions with the commit that they belong to."""

    def __init__(self, store: EmbeddingStore) -> None:
        self._store = store

    def stage(self, records: Sequence[Record], manifest: Manifest) -> None:
        """Durable with the next commit."""
        entry = _Entry(list(records), encode_manifest(manifest))
        self._store.put(SPACE, manifest.version.to_bytes(8, "big"), _encoder.encode(entry))

    def pending(self) -> list[tuple[list[Record], Manifest]]:
        """Versions not marked done, oldest first."""
        entries = [_decoder.decode(raw) for _, raw in self._store.scan(SPACE)]
        return [(list(e.records), decode_manifest(e.manifest)) for e in entries]

    def is_empty(self) -> bool:
        """Whether every version is marked done."""
        return next(iter(self._store.scan(SPACE)), None) is None

    def mark_done(self, version: int) -> None:
        """The version is readable in Kafka. Durable with the next commit; till then a restart
        publishes it once more, which readers fold away."""
        self._store.delete(SPACE, version.to_bytes(8, "big"))

"""Old versions, read back from the representation topics: what a rollback publishes again.

A compacted topic keeps every record for `min.compaction.lag.ms`. So while the version after V is
younger than that, no record that V showed has been compacted away, and folding the topics up to V's
end offsets gives V whole, byte for byte. Older versions are refused rather than guessed at.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import Message

from settings.config import Config
from topics.admin import actual_settings
from topics.errors import VersionGone
from topics.manifest import Manifest, decode_manifest
from topics.names import MANIFEST, REPRESENTATION_TOPICS
from topics.representation import Headers, ReceivedHeaders
from topics.scan import Partition, read_to_end

FORGOTTEN = "hw_forgotten"
"""Header of the tombstones of forgotten users: no rollback brings these back."""
_MARGIN_MS = 5_000
"""What is this near to its end is not begun: reading takes a while."""
_TOLD = 5

Key = tuple[str, bytes]
"""(topic without prefix, record key)."""


@dataclass(frozen=True, slots=True)
class OldRecord:
    """A key that changed since a version, as that version showed it."""

    topic: str
    key: bytes
    value: bytes | None
    """None: the version did not have it."""
    headers: Headers
    """Of the old record; where there was none, of the newest one."""


@dataclass(frozen=True, slots=True)
class OldVersion:
    """The difference between what readers hold and what they held at a version."""

    manifest: Manifest
    records: list[OldRecord]


def kept_versions(config: Config, bootstrap: str) -> list[Manifest]:
    """Manifests of the versions that can be read back whole, oldest first. Raises TopicError."""
    written: dict[int, tuple[int, Manifest]] = {}
    for _, message in read_to_end(config, bootstrap, [MANIFEST]):
        value = message.value()
        if value is None:
            written.pop(int(message.key() or b"0"), None)
        else:
            manifest = decode_manifest(value)
            written[manifest.version] = (message.timestamp()[1], manifest)
    settings = actual_settings(config, bootstrap, REPRESENTATION_TOPICS)
    lag_ms = min(int(found["min.compaction.lag.ms"]) for found in settings.values())
    whole_since_ms = time.time() * 1000 - lag_ms + _MARGIN_MS
    versions = sorted(written)
    kept = [
        written[version][1]
        for version, after in itertools.pairwise(versions)
        if written[after][0] > whole_since_ms
    ]
    return kept + [written[version][1] for version in versions[-1:]]


def kept_version(config: Config, bootstrap: str, version: int) -> Manifest:
    """The manifest of one of `kept_versions`. Raises VersionGone, which names them, TopicError."""
    kept = {manifest.version: manifest for manifest in kept_versions(config, bootstrap)}
    if version in kept:
        return kept[version]
    if not kept:
        raise VersionGone(f"version {version} is not kept: nothing was published")
    some = ", ".join(map(str, sorted(kept)[:_TOLD]))
    raise VersionGone(
        f"version {version} is not kept whole: expected one of {some}"
        + (f" ... {max(kept)}" if len(kept) > _TOLD else "")
        + " (publish.rollback_window, publish.manifests_kept)"
    )


def read_old_version(
    config: Config, bootstrap: str, version: int, stopped: Callable[[], bool] = lambda: False
) -> OldVersion:
    """What changed since `version`, as it was then, in order of topic and key.

    Memory is what changed since. Forgotten users are left out. Raises VersionGone, TopicError.
    """
    manifest = kept_version(config, bootstrap, version)
    ends: dict[Partition, int] = {
        (topic, partition): end
        for topic, of in manifest.end_offsets.items()
        for partition, end in of.items()
    }
    newest: dict[Key, tuple[bytes | None, Headers]] = {}
    for topic, message in read_to_end(config, bootstrap, REPRESENTATION_TOPICS, start=ends):
        newest[topic, message.key() or b""] = (message.value(), _headers(message))
    changed = {at for at, (value, headers) in newest.items() if not _is_forgotten(value, headers)}
    then: dict[Key, tuple[bytes | None, Headers]] = {}
    for topic, message in read_to_end(
        config, bootstrap, REPRESENTATION_TOPICS, until=ends, stopped=stopped
    ):
        at = (topic, message.key() or b"")
        if at in changed:
            then[at] = (message.value(), _headers(message))
    kept_version(config, bootstrap, version)  # still: nothing was compacted away while reading
    records = [OldRecord(*at, *then.get(at, (None, newest[at][1]))) for at in sorted(changed)]
    return OldVersion(manifest, records)


def _is_forgotten(value: bytes | None, headers: Headers) -> bool:
    return value is None and any(name == FORGOTTEN for name, _ in headers)


def _headers(message: Message) -> Headers:
    received: ReceivedHeaders = message.headers()  # type: ignore[assignment]  # always a list
    return [
        (name, value if isinstance(value, bytes) else (value or "").encode())
        for name, value in received or ()
    ]

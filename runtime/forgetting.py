"""Forgetting a user everywhere, and looking for what is left of it.

The trainer forgets with its next commit and writes tombstones with the version after; readers
follow. Event topics cannot lose single records: Kafka deletes whole stretches, by age, or from the
beginning on request (`delete_history`). What is left, where, and until when, is looked up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from confluent_kafka import TopicPartition

from downstream.reader import RepresentationReader
from embedding_store.errors import StoreLocked, StoreUnreadable
from embedding_store.keys import row_keys
from embedding_store.reading import StoreReader
from settings.config import Config
from topics.admin import actual_settings, admin_client
from topics.control import send_command
from topics.errors import kafka_errors
from topics.lag import committed_offsets
from topics.names import (
    CONVERSIONS,
    DUPLICATES,
    EVENT_TOPICS,
    IMPRESSIONS,
    LATE,
    MANIFEST,
    ORPHANS,
    SAMPLES,
    UNDECODABLE,
    join_group,
    trainer_group,
)
from topics.scan import Partition, end_offsets, read_to_end

_HISTORY = (IMPRESSIONS, CONVERSIONS, SAMPLES, LATE, ORPHANS, DUPLICATES, UNDECODABLE)
_VECTORS = ("representations.user", "representations.cross")


class Place(msgspec.Struct, frozen=True):
    """Where was looked."""

    name: str
    found: int
    """Records, rows or vectors that are the user's."""
    note: str
    """Until when they stay, or why nobody looked."""
    is_live: bool
    """Whether anyone learns from it, or reads it: nothing may be found here."""


class Forgotten(msgspec.Struct, frozen=True):
    """What `headwater forget` reports."""

    user_id: str
    version: int | None
    """The version that carries the tombstones; None if nobody waited for it."""
    places: list[Place]

    @property
    def is_proven(self) -> bool:
        """Nothing of the user where anyone learns or reads."""
        return not any(place.found for place in self.places if place.is_live)


class _OfUser(msgspec.Struct):
    user_id: str = ""


_of_user = msgspec.json.Decoder(_OfUser)


def ask_to_forget(config: Config, bootstrap: str, user_id: str) -> dict[Partition, int]:
    """Tell the trainer; where the manifests ended before. Raises TopicError."""
    before = end_offsets(config, bootstrap, [MANIFEST])
    send_command(config, bootstrap, "forget", user_id=user_id)
    return before


def look_for(config: Config, bootstrap: str, user_id: str, stores: list[Path]) -> list[Place]:
    """Everywhere that headwater keeps anything. Raises TopicError, StoreError."""
    with RepresentationReader(config, bootstrap, ("user", "cross"), follow=False) as reader:
        held = [("user", user_id), ("cross", f"user:{user_id}")]
        vectors = sum(reader.get(kind, name) is not None for kind, name in held)  # type: ignore[arg-type]
    places = [Place("a reader", vectors, "vectors that a new reader holds", True)]
    places += _compacted(config, bootstrap, user_id)
    places += [_history_place(config, bootstrap, user_id, name) for name in _HISTORY]
    for store in stores:
        places += _store_places(store, user_id)
    return places


def delete_history(config: Config, bootstrap: str, user_id: str) -> dict[str, int]:
    """Delete the beginning of each event and sample topic, up to the user's newest record, as far
    as the join and the trainer have read it: topic -> records' offsets deleted. Everyone's history
    goes with it: it cannot be replayed any more. Raises TopicError."""
    group_of = dict.fromkeys(EVENT_TOPICS, join_group(config))
    group_of[SAMPLES] = trainer_group(config)
    newest: dict[Partition, int] = {}
    for name, partition, offset, _ in _records_of(config, bootstrap, user_id, _HISTORY):
        newest[name, partition] = offset + 1
    for name, group in group_of.items():
        read = committed_offsets(config, bootstrap, group, (name,))()
        for at in [at for at in newest if at[0] == name]:
            newest[at] = min(newest[at], read.get(at, 0))
    wanted = [TopicPartition(config.topic(n), p, o) for (n, p), o in newest.items() if o > 0]
    if wanted:
        admin = admin_client(config, bootstrap)  # must outlive the futures
        for future in admin.delete_records(wanted).values():
            with kafka_errors("deleting records"):
                future.result()
    deleted: dict[str, int] = {}
    for (name, _), offset in newest.items():
        deleted[name] = deleted.get(name, 0) + offset
    return deleted


def _compacted(config: Config, bootstrap: str, user_id: str) -> Iterator[Place]:
    settings = actual_settings(config, bootstrap, _VECTORS)
    for name in _VECTORS:
        key = user_id.encode() if name.endswith("user") else f"user:{user_id}".encode()
        old, is_deleted = 0, True
        for _, message in read_to_end(config, bootstrap, [name]):
            if message.key() == key:
                is_deleted = message.value() is None
                old += message.value() is not None
        yield Place(f"{name} (newest record)", int(not is_deleted), "a tombstone, or none", True)
        lag_s = int(settings[name]["max.compaction.lag.ms"]) / 1000
        roll_s = int(settings[name]["segment.ms"]) / 1000
        note = f"older vectors, compacted away within about {(lag_s + roll_s) / 60:.0f} min"
        yield Place(f"{name} (log)", old, note, False)


def _history_place(config: Config, bootstrap: str, user_id: str, name: str) -> Place:
    newest_ms, found = 0, 0
    for _, _, _, at_ms in _records_of(config, bootstrap, user_id, (name,)):
        newest_ms, found = max(newest_ms, at_ms), found + 1
    if not found:
        return Place(name, 0, "none", False)
    settings = actual_settings(config, bootstrap, [name])[name]
    kept_ms = int(settings["retention.ms"])
    if kept_ms < 0:
        return Place(name, found, "kept for ever: retention.ms=-1", False)
    # A segment goes when its newest record is too old, and is written to for up to segment.ms.
    gone_ms = newest_ms + kept_ms + int(settings["segment.ms"])
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(gone_ms / 1000))
    return Place(
        name, found, f"read no more; deleted by {when}, or at once: --delete-history", False
    )


def _records_of(
    config: Config, bootstrap: str, user_id: str, names: tuple[str, ...]
) -> Iterator[tuple[str, int, int, int]]:
    """(topic, partition, offset, Kafka time) of the records that name the user."""
    quoted = msgspec.json.encode(user_id)[1:-1]
    for name, message in read_to_end(config, bootstrap, list(names)):
        value = message.value() or b""
        key = message.key() or b""
        if quoted not in value and user_id.encode() not in key:
            continue
        try:
            is_own = _of_user.decode(value).user_id == user_id
        except msgspec.DecodeError:  # undecodable: whatever names it counts
            is_own = True
        if is_own:
            yield name, message.partition() or 0, message.offset() or 0, message.timestamp()[1]


def _store_places(store: Path, user_id: str) -> Iterator[Place]:
    copies = sorted(p for p in store.parent.glob(f"{store.name}.*/*") if (p / "rocks").is_dir())
    for path in (store, *copies):
        name = f"store {path.relative_to(store.parent)}"
        try:
            with_reader = StoreReader(path, "headwater forget")
        except StoreLocked:
            note = "a trainer holds it: the next checkpoint shows it"
            yield Place(f"{name} (not looked at)", 0, note, False)
            continue
        except StoreUnreadable:
            continue
        try:
            found = _in_store(with_reader, user_id)
        finally:
            with_reader.close()
        note = "rows, records and aggregates" if path == store else "a copy of before, until pruned"
        yield Place(name, found, note, path == store)


def _in_store(reader: StoreReader, user_id: str) -> int:
    user = user_id.encode()
    own = {("entity", b"user:" + user), ("reservoir", user)}
    own |= {("published", kind + b"user:" + user) for kind in (b"t", b"c")}
    found = int(np.count_nonzero(reader.rows(row_keys("user_id", [user_id]))[1]))
    for space, key, value in reader.state():
        found += (space, key) in own or (space == "entity_row" and value == b"user:" + user)
    return found

"""Topic `control`: what an operator asks of the trainer, in order. One partition, JSON values.

The trainer keeps the offset of the next command in its store's commit, beside what the command did:
each takes effect exactly once, and a restored store obeys again what it has forgotten.
"""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from settings.config import Config
from topics.json_record import decode_json
from topics.names import CONTROL
from topics.writing import write_durably

Verb = Literal["rollback", "release", "refresh", "forget"]


class Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of: rollback to `version` and hold newer content; release what a rollback holds; refresh
    every vector; forget the user `user_id`."""

    verb: Verb
    created_ms: int
    """Wall clock, Unix milliseconds."""
    version: int | None = None
    user_id: str | None = None


_command = msgspec.json.Decoder(Command)


def decode_command(value: bytes) -> Command:
    """Raises RecordInvalid."""
    return decode_json(_command, value, "a command")


def send_command(
    config: Config,
    bootstrap: str,
    verb: Verb,
    *,
    version: int | None = None,
    user_id: str | None = None,
) -> int:
    """Returns the command's offset once it is durable; the trainer takes it at its next commit.

    Raises TopicError.
    """
    now_ms = time.time_ns() // 1_000_000
    command = Command(verb=verb, created_ms=now_ms, version=version, user_id=user_id)
    return write_durably(config, bootstrap, CONTROL, verb.encode(), msgspec.json.encode(command))

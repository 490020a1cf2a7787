"""What an operator asks of this trainer, from the topic `control`."""

from __future__ import annotations

import time
from typing import Protocol

import structlog
from confluent_kafka import Consumer, TopicPartition

from settings.config import Config
from topics.client import consumer_settings
from topics.control import Command, decode_command
from topics.errors import RecordInvalid
from topics.names import CONTROL
from topics.scan import scan_group

_LOOK_EVERY_SECONDS = 0.1
_log = structlog.get_logger()


class Commands(Protocol):
    """Where commands come from."""

    def waiting(self) -> bool:
        """Whether any is there; never waits."""

    def take(self) -> list[tuple[int, Command]]:
        """(offset behind it, command), in order; those are gone then."""


class KafkaCommands:
    """One consumer of the control topic, from an offset that the store keeps."""

    def __init__(self, config: Config, bootstrap: str, offset: int) -> None:
        """Where retention has taken what lay at `offset`, the earliest there is comes first."""
        self._consumer = Consumer(consumer_settings(config, bootstrap, scan_group(config)))
        self._consumer.assign([TopicPartition(config.topic(CONTROL), 0, offset)])
        self._found: list[tuple[int, Command]] = []
        self._looked = 0.0

    def waiting(self) -> bool:
        """Looks a few times a second. A broker that is away is nobody who asks."""
        if time.monotonic() - self._looked >= _LOOK_EVERY_SECONDS:
            self._looked = time.monotonic()
            for message in self._consumer.consume(100, 0):
                if message.error() is not None:
                    continue
                try:
                    command = decode_command(message.value() or b"")
                except RecordInvalid as error:
                    _log.error("command_refused", offset=message.offset(), reason=str(error))
                    continue
                self._found.append(((message.offset() or 0) + 1, command))
        return bool(self._found)

    def take(self) -> list[tuple[int, Command]]:
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close()

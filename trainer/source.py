"""Where samples come from: a file, or Kafka from the offsets that the store holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog
import xxhash
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from settings.config import Config
from topics.client import consumer_settings
from topics.errors import RecordInvalid, TopicError, TopicUnavailable, TopicUnknown, topic_error
from topics.join_header import JoinHeader
from topics.names import SAMPLES, partition_count, trainer_group
from topics.sample import Sample, decode_sample
from topics.scan import end_offsets, log_span
from trainer.errors import SourceGap, SourceLost

OUTAGE_SECONDS_MAX = 600.0
"""A broker away for longer is not restarting: the process ends and says so."""
FILE_TOPIC = "file"
_PROBE_SECONDS = 5.0
_TELL_SECONDS = 10.0
_log = structlog.get_logger()

Offsets = Mapping[str, Mapping[int, int]]


class SourceRecord(msgspec.Struct, frozen=True):
    """One record of the source; `sample` is None where `rejected` says why.

    A struct of msgspec's, as one is made per sample: a frozen dataclass takes longer.
    """

    sample: Sample | None
    topic: str
    """Without prefix."""
    partition: int
    offset: int
    joined_ms: int = -1
    """Wall clock of the join's emission; for metrics only."""
    watermark_ms: int = -1
    rejected: str = ""


class Source(Protocol):
    """Records in the order of each partition, from the offsets it was made with."""

    @property
    def at_end(self) -> bool:
        """Bounded, and everything was delivered."""

    def poll(self, count: int, timeout_seconds: float) -> list[SourceRecord]:
        """Up to `count` records, waiting at most `timeout_seconds` for them."""

    def committed(self, offsets: Offsets) -> None:
        """The store's commit holds everything below `offsets`."""

    def close(self) -> None:
        """Let go of what is held."""


class FileSource:
    """`samples.jsonl`; an offset is a line number from 0.

    A file is known by its first line: the same one, grown, is continued; another one is begun.
    """

    def __init__(self, path: Path, offsets: Offsets) -> None:
        """Raises OSError if the file cannot be read."""
        with path.open("rb") as file:
            self._topic = f"{FILE_TOPIC}-{xxhash.xxh3_64_hexdigest(file.readline().strip())}"
        self._file = path.open("rb")
        self._next = 0
        self._from = offsets.get(self._topic, {}).get(0, 0)
        self.at_end = False

    def poll(self, count: int, timeout_seconds: float) -> list[SourceRecord]:
        """The next `count` lines; fewer only at the end. Empty lines are skipped."""
        del timeout_seconds
        records: list[SourceRecord] = []
        while len(records) < count:
            line = self._file.readline()
            if not line:
                self.at_end = True
                break
            offset, self._next = self._next, self._next + 1
            if offset >= self._from and line.strip():
                sample, rejected = _decode(line)
                records.append(SourceRecord(sample, self._topic, 0, offset, rejected=rejected))
        return records

    def committed(self, offsets: Offsets) -> None:
        """Nothing to tell."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class KafkaSource:
    """`<prefix>.samples`, read_committed, by explicit assignment: no group decides what is read.

    The group `<prefix>.trainer` only hears how far the store is, for lag monitors.
    """

    def __init__(
        self,
        config: Config,
        bootstrap: str,
        offsets: Offsets,
        *,
        until_end: bool = False,
        accept_gap: bool = False,
    ) -> None:
        """Raises SourceGap if the log does not hold the stored offsets, TopicError otherwise."""
        self._topic = config.topic(SAMPLES)
        settings = consumer_settings(config, bootstrap, trainer_group(config))
        # A position that the log no longer holds must stop us, not silently jump.
        settings["auto.offset.reset"] = "error"
        self._told: dict[str, float] = {}
        settings["error_cb"] = self._note_error
        # Waiting out a broker while publishing is not a reason to be thrown out of a group.
        settings["max.poll.interval.ms"] = 86_400_000
        self._consumer = Consumer(settings)
        self._down_since: float | None = None
        self._probed = 0.0
        partitions = range(partition_count(config, SAMPLES))
        stored = offsets.get(SAMPLES, {})
        start = {p: self._start(p, stored.get(p), accept_gap=accept_gap) for p in partitions}
        self._ends = (
            {p: end for (_, p), end in end_offsets(config, bootstrap, [SAMPLES]).items()}
            if until_end
            else {}
        )
        self._unfinished = {p for p, end in self._ends.items() if start[p] < end}
        self._bounded = until_end
        self._consumer.assign(
            [TopicPartition(self._topic, p, offset) for p, offset in start.items()]
        )

    @property
    def at_end(self) -> bool:
        """Under `until_end`: every partition was read to where it ended at the start."""
        return self._bounded and not self._unfinished

    def poll(self, count: int, timeout_seconds: float) -> list[SourceRecord]:
        """Up to `count` records; none while the broker is away, which librdkafka waits out.

        Raises SourceLost once it has been away for OUTAGE_SECONDS_MAX, SourceGap, TopicError.
        """
        try:
            messages = self._consumer.consume(count, timeout_seconds)
        except KafkaException as error:
            self._take_error(error.args[0], 0, -1)
            messages = []
        records: list[SourceRecord] = []
        for message in messages:
            trouble = message.error()
            if trouble is not None:
                self._take_error(trouble, message.partition() or 0, message.offset() or 0)
                continue
            self._down_since = None
            partition, offset = message.partition() or 0, message.offset() or 0
            end = self._ends.get(partition)
            if end is not None and offset >= end:
                self._unfinished.discard(partition)
                continue  # after the end of then: not of this run
            if end is not None and offset == end - 1:
                self._unfinished.discard(partition)
            records.append(_record(message, partition, offset))
        if self._down_since is not None:
            self._probe()
        return records

    def committed(self, offsets: Offsets) -> None:
        """Tell the group, without waiting: it decides nothing."""
        positions = [
            TopicPartition(self._topic, p, offset) for p, offset in offsets.get(SAMPLES, {}).items()
        ]
        if positions:
            try:
                self._consumer.commit(offsets=positions, asynchronous=True)
            except KafkaException as error:
                _log.warning("group_offsets_not_committed", error=str(error))

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def _start(self, partition: int, stored: int | None, *, accept_gap: bool) -> int:
        low, high = log_span(self._consumer, self._topic, partition)
        if stored is None:
            return low
        if low <= stored <= high:
            return stored
        text = (
            f"{self._topic} partition {partition}: the store continues at offset {stored}, "
            f"the log holds {low} to {high}"
        )
        if not accept_gap:
            raise SourceGap(f"{text}; restore the topic, use a new store, or pass --accept-gap")
        _log.error("source_gap_accepted", reason=text)
        return low

    def _take_error(self, error: KafkaError, partition: int, offset: int) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            self._down_since = None
            if offset >= self._ends.get(partition, 0):
                self._unfinished.discard(partition)
            return
        if code == KafkaError._AUTO_OFFSET_RESET:
            raise SourceGap(f"{self._topic}: {error.str()}")
        found = topic_error(error, f"reading {self._topic}")
        # A broker that has just come back may not know its topics for a moment.
        if not isinstance(found, TopicUnavailable | TopicUnknown):
            raise found
        _log.warning("samples_unreadable", reason=str(found))
        if self._down_since is None:
            self._down_since = self._probed = time.monotonic()

    def _note_error(self, error: KafkaError) -> None:
        """librdkafka reconnects by itself; remember since when it has had to.

        It tells every attempt, hundreds in a short outage: of one code one a while is logged.
        """
        now = time.monotonic()
        if now - self._told.get(error.name(), -_TELL_SECONDS) >= _TELL_SECONDS:
            self._told[error.name()] = now
            _log.warning("broker_trouble", reason=error.str(), code=error.name())
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._down_since is None:
            self._down_since = self._probed = time.monotonic()

    def _probe(self) -> None:
        now = time.monotonic()
        if self._down_since is None or now - self._probed < _PROBE_SECONDS:
            return
        try:
            found = self._consumer.list_topics(self._topic, timeout=2).topics[self._topic]
            if found.error is not None:
                raise KafkaException(found.error)
        except KafkaException as error:
            away = now - self._down_since
            if away > OUTAGE_SECONDS_MAX:
                raise SourceLost(f"{self._topic} was away for {away:.0f} s: {error}") from error
        else:
            self._down_since = None
        self._probed = time.monotonic()


def _record(message: Message, partition: int, offset: int) -> SourceRecord:
    sample, rejected = _decode(message.value() or b"")
    joined_ms, watermark_ms = _times(message.headers())
    return SourceRecord(sample, SAMPLES, partition, offset, joined_ms, watermark_ms, rejected)


def _times(headers: Any) -> tuple[int, int]:
    """(joined_ms, watermark_ms), -1 where a foreign producer's sample does not say."""
    try:
        said = JoinHeader.find(headers)
    except RecordInvalid as invalid:
        _log.warning("header_not_readable", error=str(invalid))
        return -1, -1
    return (-1, -1) if said is None else (said.joined_ms, said.watermark_ms)


def _decode(value: bytes) -> tuple[Sample | None, str]:
    try:
        return decode_sample(value), ""
    except TopicError as error:
        return None, str(error)


def retry_while_away(what: str, call: Callable[[], Any], stopping: Callable[[], bool]) -> Any:
    """`call()`, again and again while the broker is away; every try is logged by name.

    Raises SourceLost after OUTAGE_SECONDS_MAX, or at once when asked to stop.
    """
    since, wait_seconds = time.monotonic(), 0.2
    while True:
        try:
            return call()
        except TopicUnavailable as error:
            away = time.monotonic() - since
            _log.warning("broker_away", doing=what, seconds=round(away, 1), reason=str(error))
            if away > OUTAGE_SECONDS_MAX or stopping():
                raise SourceLost(f"{what}: {error}") from error
        time.sleep(wait_seconds)
        wait_seconds = min(2 * wait_seconds, 5.0)

"""Sends events as they are into the two event topics, and paces them against the clock."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from settings.config import Config
from topics.client import producer_settings
from topics.errors import TopicError, topic_error
from topics.event import event_key

NOT_READABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding a line raises that is no event; the last one for brackets without end."""
_KEY_BYTES_MAX = 33_000  # of two ids; with a longer one no record could hold key and value
_POLL_EVERY = 500
# What librdkafka says of its connections is noise beside errors, which reach us as errors.
_QUIET = logging.getLogger("headwater.librdkafka")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


class _Pair(msgspec.Struct):
    user_id: str
    item_id: str


class _Time(msgspec.Struct):
    event_ms: int


_pair = msgspec.json.Decoder(_Pair)
_time = msgspec.json.Decoder(_Time)


def pair_key(line: bytes) -> bytes | None:
    """Kafka key of an event's line; None where it cannot be read: the join says what is wrong."""
    try:
        pair = _pair.decode(line)
        key = event_key(pair.user_id, pair.item_id)
    except NOT_READABLE:
        return None
    return key if len(key) <= _KEY_BYTES_MAX else None


def event_time_ms(line: bytes) -> int | None:
    """The line's event_ms; None where it has no usable one."""
    try:
        return _time.decode(line).event_ms
    except NOT_READABLE:
        return None


class EventProducer:
    """An idempotent producer of lines. `sent` and `acknowledged` count lines by stream.

    Order is kept per partition; a line is durable once acknowledged, at the latest after `flush`.
    """

    def __init__(self, config: Config, bootstrap: str) -> None:
        self._bytes_max = config.events.bytes_max
        self._topics = {name: config.topic(name) for name in ("impressions", "conversions")}
        self._producer = Producer(producer_settings(config, bootstrap), logger=_QUIET)
        self._delivered = {name: self._on_delivery(name) for name in self._topics}
        self._first_error: TopicError | None = None
        self._since_poll = 0
        self.sent: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def send(self, stream: str, line: bytes) -> bool:
        """Queue `line`; False, and nothing sent, if it is over events.bytes_max.

        Waits while the client's queue is full. Raises TopicError once a delivery has failed.
        """
        if len(line) > self._bytes_max:
            return False
        key = pair_key(line)
        while True:
            try:
                self._producer.produce(
                    self._topics[stream], line, key, on_delivery=self._delivered[stream]
                )
                break
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise topic_error(error, f"producing to {self._topics[stream]}") from error
        self.sent[stream] += 1
        self._since_poll += 1
        if self._since_poll >= _POLL_EVERY:
            self.poll()
        return True

    def poll(self) -> None:
        """Serve delivery reports; call it while pausing. Raises TopicError."""
        self._since_poll = 0
        self._producer.poll(0)
        if self._first_error is not None:
            raise self._first_error

    def flush(self, timeout_s: float = 120) -> None:
        """Wait until every line is acknowledged. Raises TopicError if one was not."""
        left = self._producer.flush(timeout_s)
        if self._first_error is None and left:
            self._first_error = TopicError(f"{left} lines not acknowledged after {timeout_s:g} s")
        if self._first_error is not None:
            raise self._first_error

    def _on_delivery(self, stream: str) -> Callable[[KafkaError | None, Message], None]:
        def report(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self.acknowledged[stream] += 1
                return
            self.failed[stream] += 1
            if self._first_error is None:
                self._first_error = topic_error(error, f"producing to {message.topic()}")

        return report


class Pace:
    """When each event is due on the wall clock: at a rate, at event time's own speed, or at once.

    At most one of `per_second` and `speedup` (event time over wall time) is given. An event that
    jumps ahead by more than `jump_ms_max` is not waited for: one line of the year 2099 would end
    the replay.
    """

    def __init__(
        self,
        *,
        per_second: float | None = None,
        speedup: float | None = None,
        jump_ms_max: int = 86_400_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second = per_second
        self._speedup = speedup
        self._clock = clock
        self._started = clock()
        self._count = 0
        self._first_ms: int | None = None
        self._newest_ms = 0
        self._jump_ms_max = jump_ms_max

    def wait_s(self, event_ms: int | None) -> float:
        """Seconds until the next event, which has this time, is due; 0 or less = now.

        Without a readable time an event is due with the one before it.
        """
        passed = self._clock() - self._started
        if self._per_second is not None:
            due = self._count / self._per_second
            self._count += 1
            return due - passed
        if self._speedup is not None and event_ms is not None:
            if self._first_ms is None:
                self._first_ms = self._newest_ms = event_ms
            if event_ms > self._newest_ms + self._jump_ms_max:
                return 0.0
            self._newest_ms = max(self._newest_ms, event_ms)
            return (event_ms - self._first_ms) / 1000 / self._speedup - passed
        return 0.0

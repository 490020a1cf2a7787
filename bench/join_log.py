"""The input of `bench/join.py`: a stretch of simulated traffic, repeated with new ids and times.

The simulator makes some thousand events per second; two million would take it longer than all
systems together take to join them. So one stretch is simulated, its lines become templates, and
every repetition has impression and conversion ids of its own and event times moved on by the
stretch's length. Users, items and the order of event time are the simulator's. A stretch is longer
than the join remembers: else every impression would meet its own pair from the repetition before,
which in simulated and in real traffic hardly one in fifty does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import Producer

from runtime.producing import pair_key
from runtime.sources.traffic import Source
from settings.config import Config
from topics.client import producer_settings

_ID = re.compile(rb'("(?:impression|conversion)_id":"[^"]+)"')
_TIME = re.compile(rb'"event_ms":(\d+)')


@dataclass(frozen=True, slots=True)
class Template:
    """One line of the stretch, to be filled with (repetition, ..., event_ms)."""

    at_ms: int
    """Event time from the stretch's beginning; may lie beyond its end."""
    stream: str
    key: bytes | None
    text: bytes
    ids: int

    def line(self, repetition: int, event_ms: int) -> bytes:
        return self.text % (*(repetition,) * self.ids, event_ms)


def templates(source: Source, start_ms: int) -> list[Template]:
    """Of every event of `source`, whose first is at `start_ms`."""
    found = []
    for event in source.events():
        head, time, tail = _TIME.split(event.line.replace(b"%", b"%%"), maxsplit=1)
        head, ids = _ID.subn(rb'\1-%d"', head)
        text = head + b'"event_ms":%d' + tail
        key = pair_key(event.line)
        found.append(Template(int(time) - start_ms, event.stream, key, text, ids))
    return found


def repeated(
    stretch: list[Template], start_ms: int, length_ms: int, times: int
) -> Iterator[tuple[str, bytes | None, bytes]]:
    """(stream, key, line) of `times` repetitions, `length_ms` apart, in order of event time."""
    phases = sorted(
        ((*divmod(one.at_ms, length_ms), one) for one in stretch), key=lambda phase: phase[1]
    )
    behind_max = max(behind for behind, _, _ in phases)
    for cycle in range(times + behind_max):
        cycle_ms = start_ms + cycle * length_ms
        for behind, phase_ms, one in phases:
            if 0 <= cycle - behind < times:
                yield one.stream, one.key, one.line(cycle - behind, cycle_ms + phase_ms)


def send_repeated(
    config: Config, bootstrap: str, source: Source, *, start_ms: int, length_ms: int, times: int
) -> None:
    """Fill both event topics; returns once everything is durable."""
    producer = Producer(producer_settings(config, bootstrap))
    topic = {name: config.topic(name) for name in ("impressions", "conversions")}
    stretch = templates(source, start_ms)
    for stream, key, line in repeated(stretch, start_ms, length_ms, times):
        while True:
            try:
                producer.produce(topic[stream], line, key)
                break
            except BufferError:
                producer.poll(0.1)
    if left := producer.flush(120):
        raise RuntimeError(f"{left} events were not acknowledged in 120 s")

"""What every source of traffic gives: events in the order they are to be sent, and its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

DEMO_EVENTS_PER_SECOND = 250
"""How fast a demo replays a real log unless told otherwise."""

StreamName = Literal["impressions", "conversions"]


@dataclass(frozen=True, slots=True)
class TrafficEvent:
    """One line for one of the two topics, due at `due_ms` on the source's event-time clock.

    `due_ms` equals the event's own time, save for an event that comes late or twice. `truth` is a
    JSON line on what is known about an impression beyond the stream; never sent.
    """

    stream: StreamName
    due_ms: int
    line: bytes
    truth: bytes | None = None


class Source(Protocol):
    """Traffic of one kind. Iterating twice gives the same events, byte for byte."""

    name: str

    @property
    def speedup(self) -> float:
        """Event milliseconds per wall millisecond that suit a demo."""
        ...

    def config_values(self) -> Mapping[str, Any]:
        """The parts of a Config that this traffic decides, nested as in TOML."""
        ...

    def events(self) -> Iterator[TrafficEvent]:
        """Events by ascending `due_ms`."""
        ...

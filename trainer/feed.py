"""From a source's records to portions: decoded, hashed, cut.

`Feed` does it where it is called. `feed_process` has another process do it ahead of time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from settings.config import TrainerConfig
from topics.sample import Sample
from trainer.batch import build_batch
from trainer.pieces import join_portions
from trainer.portion import Portion
from trainer.slots import Plan
from trainer.source import Offsets, Source, SourceRecord

POLL_SECONDS = 0.1
REFUSED_TOLD_MAX = 10
"""Reasons kept of the records of one portion; the count is of all."""


PIECE_RECORDS = 512
"""Records that are decoded before they become arrays: a batch of thousands, decoded as a whole, is
several times what a core's cache holds, and would be fetched from memory twice more."""


class PortionSource(Protocol):
    """Portions in the order of the log."""

    @property
    def at_end(self) -> bool:
        """Bounded, and everything was handed out."""

    def take(self, stopping: Callable[[], bool]) -> Portion | None:
        """The next portion; None if there is none yet (it waited a moment), or at the end."""

    def take_ready(self, stopping: Callable[[], bool]) -> Portion | None:
        """The next portion if it is there without waiting."""

    def committed(self, offsets: Offsets) -> None:
        """The store's commit holds everything below `offsets`."""

    def close(self) -> None:
        """Let go of what is held."""


class Feed:
    """Portions of a source, made by the thread that asks for them.

    By count, a portion is not handed out until it is full or the source has ended: whatever the
    log's reader delivers when, the same records come together.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        trainer: TrainerConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._plan, self._trainer, self._clock = source, plan, trainer, clock
        self._buffer: list[SourceRecord] = []
        self._pieces: list[Portion] = []  # of the records before these
        self._many = 0  # records in both

    @property
    def at_end(self) -> bool:
        """Bounded, and everything was handed out."""
        return self._source.at_end and not self._many

    def take(self, stopping: Callable[[], bool]) -> Portion | None:
        """The next portion; raises what the source raises."""
        if not self._gather(stopping):
            return None
        self._encode()
        pieces, self._pieces, self._many = self._pieces, [], 0
        return join_portions(pieces)

    def take_ready(self, stopping: Callable[[], bool]) -> Portion | None:
        """None: portions are made when they are asked for."""
        del stopping
        return None

    def committed(self, offsets: Offsets) -> None:
        """Passed on."""
        self._source.committed(offsets)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _gather(self, stopping: Callable[[], bool]) -> bool:
        """Poll the records of a portion; whether there is one."""
        trainer, source = self._trainer, self._source
        size = trainer.batch_samples_max
        if trainer.cut_by == "count":
            while self._many < size and not source.at_end and not stopping():
                self._poll(size - self._many, POLL_SECONDS)
            return self._many > 0 and (self._many == size or source.at_end)
        self._poll(1, min(POLL_SECONDS, trainer.commit_every / 1000))
        closes_at = self._clock() + trainer.batch_wait / 1000
        while 0 < self._many < size and not source.at_end:
            left = closes_at - self._clock()
            if left <= 0:
                break
            self._poll(size - self._many, left)
        return self._many > 0

    def _poll(self, count: int, seconds: float) -> None:
        records = self._source.poll(min(count, PIECE_RECORDS - len(self._buffer)), seconds)
        self._many += len(records)
        self._buffer += records
        if len(self._buffer) == PIECE_RECORDS:
            self._encode()

    def _encode(self) -> None:
        """What was decoded becomes arrays while it is still in the processor's caches."""
        if self._buffer:
            told = sum(len(piece.refused) for piece in self._pieces)
            self._pieces.append(make_portion(self._buffer, self._plan, told))
            self._buffer = []


def make_portion(records: list[SourceRecord], plan: Plan, told: int = 0) -> Portion:
    """The portion of `records`, which are next to each other in the log; `told`: how many before
    them were refused."""
    offsets: dict[str, dict[int, int]] = {}
    samples: list[Sample] = []
    joined: list[int] = []
    refused: list[str] = []
    watermark_ms = -1
    for record in records:
        offsets.setdefault(record.topic, {})[record.partition] = record.offset + 1
        watermark_ms = max(watermark_ms, record.watermark_ms)
        if record.sample is None:
            at = f"{record.topic}[{record.partition}]@{record.offset}"
            refused.append(
                f"{at}: {record.rejected}" if told + len(refused) < REFUSED_TOLD_MAX else at
            )
        else:
            samples.append(record.sample)
            joined.append(record.joined_ms)
    return Portion(
        build_batch(samples, plan) if samples else None,
        np.asarray(joined, np.int64),
        offsets,
        watermark_ms,
        refused,
    )

"""Version numbers of a store that was restored: readers already have newer versions than it.

Readers keep the newest version of an id, and compaction keeps the last record of a key, so nothing
older may ever be written behind something newer. How a restored store catches up:

cut by count   What it relearns is, byte for byte, what was published before. It cuts the same
               versions under the same numbers and publishes none of them again, until it is past
               the newest. Each is recognised by the manifest on the topic (step and offsets).
cut by time    What it relearns is cut at other places, so it is other content. The next version's
               number is one above the newest on the topic.

A version of the count kind that the topic does not have as relearnt (another config since, or the
manifest is no longer kept) is numbered like one of the time kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from topics.manifest import Manifest
from trainer.durable import Progress


class Numbering:
    """The number of the next version, given the manifests on the topic when the run started."""

    def __init__(
        self, published: Mapping[int, Manifest], *, cut_by: Literal["time", "count"]
    ) -> None:
        self._published, self._cut_by = published, cut_by
        self._newest = max(published, default=0)

    def is_superseded(self, version: int) -> bool:
        """Is this version of the outbox behind what readers have?"""
        return version < self._newest

    def next(self, progress: Progress) -> tuple[int, bool]:
        """(number, whether readers have exactly this version already) of the version to be cut."""
        version = progress.version + 1
        if version > self._newest:
            return version, False
        there = self._published.get(version)
        if (
            self._cut_by == "count"
            and there is not None
            and there.step == progress.step
            and there.source_offsets == progress.offsets
        ):
            return version, True
        return self._newest + 1, False

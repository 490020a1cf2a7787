"""What was committed can be read some milliseconds later: tests that read at once wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from settings.config import Config
from topics import publisher
from topics.manifest import Manifest
from topics.names import MANIFEST, REPRESENTATION_TOPICS
from topics.publisher import Record
from topics.scan import end_offsets


class Publisher(publisher.Publisher):
    """The real one, for tests that read at once what they published: `publish` returns when it can
    be read."""

    def __init__(self, config: Config, bootstrap: str, *rest: Any, **more: Any) -> None:
        super().__init__(config, bootstrap, *rest, **more)
        self._at = (config, bootstrap)

    def publish(self, version: int, records: Iterable[Record], manifest: Manifest) -> Manifest:
        written = super().publish(version, records, manifest)
        await_readable(*self._at, (MANIFEST, *REPRESENTATION_TOPICS))
        return written


def await_readable(config: Config, bootstrap: str, names: Sequence[str]) -> None:
    """Until no transaction is open on the topics `names`. A broker answers a commit before it has
    written the markers that make it readable: who reads at once may see what was before."""
    deadline = time.monotonic() + 120
    while True:
        stable, written = (
            end_offsets(config, bootstrap, names, read_committed=committed)
            for committed in (True, False)
        )
        if stable == written:
            return
        assert time.monotonic() < deadline, f"open for two minutes: {stable}, {written}"
        time.sleep(0.01)

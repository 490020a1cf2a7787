"""Work of one batch that is done while the next one's gradients are computed.

What a batch leaves behind for entities and evaluation is Python and NumPy; the backward pass holds
no interpreter lock and takes longer. So a thread does the one beside the other: a single piece of
work at a time, in the order of the batches, and all of it before a commit. It writes nothing that a
step reads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Aside:
    """Holds one piece of work, does it in its own thread once told to."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._held: Callable[[], None] | None = None
        self._running: Future[None] | None = None

    def hold(self, work: Callable[[], None]) -> None:
        """Keep `work` for `start`, or for `finish` at the latest; waits for what is before it."""
        self.finish()
        self._held = work

    def start(self) -> None:
        """Begin with what is held, if anything is."""
        if self._held is None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="aside")
        self._running, self._held = self._thread.submit(self._held), None

    def finish(self) -> None:
        """Return when nothing is held or running; raises what the work raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
        held, self._held = self._held, None
        if held is not None:
            held()

    def close(self) -> None:
        """Wait for what is running; what is held is dropped, for nothing will be committed."""
        self._held = self._running = None
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()

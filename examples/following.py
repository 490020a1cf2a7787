"""What the bridges share: a reader whose changes, version by version, go somewhere else."""

from __future__ import annotations

import argparse
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from downstream.reader import RepresentationReader
from downstream.table import Change
from settings.config import Config
from settings.load import load_config
from topics.names import KINDS, Kind
from topics.representation import Representation

Put = Callable[[Sequence[Representation], Sequence[str]], None]
"""(vectors to set, ids to delete) of one kind."""
_BATCH = 1000


class Following:
    """Carries everything that is held, then every version's changes. A change is looked up when it
    is carried, so what is written is never older than what was read; running it again is safe."""

    def __init__(self, config: Config, bootstrap: str, kinds: Sequence[Kind], put: Put) -> None:
        """Raises what `RepresentationReader` raises."""
        self._kinds, self._put = tuple(kinds), put
        self._changes: queue.Queue[Sequence[Change]] = queue.Queue()
        self.reader = RepresentationReader(
            config, bootstrap, kinds, on_applied=lambda changes, _: self._changes.put(changes)
        )

    def carry_all(self) -> int:
        """Everything that the reader holds; how many vectors."""
        count = 0
        for kind in self._kinds:
            ids, _ = self.reader.matrix(kind)
            for batch in _batches(ids):
                count += self._carry(kind, batch)
        return count

    def carry_changes(self, timeout_seconds: float) -> int:
        """One version's changes, waiting for it; how many vectors, 0 if none came."""
        try:
            changes = self._changes.get(timeout=timeout_seconds)
        except queue.Empty:
            return 0
        count = 0
        for kind in self._kinds:
            for batch in _batches([c.id for c in changes if c.kind == kind]):
                count += self._carry(kind, batch)
        return count

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping`."""
        self.carry_all()
        while not stopping.is_set():
            self.carry_changes(0.5)

    def close(self) -> None:
        self.reader.close()

    def _carry(self, kind: Kind, ids: Sequence[str]) -> int:
        held = {entity_id: self.reader.get(kind, entity_id) for entity_id in ids}
        vectors = [one for one in held.values() if one is not None]
        self._put(vectors, [i for i, one in held.items() if one is None])
        return len(vectors)


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every bridge."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--config", type=Path, help="the stack's config")
    made.add_argument("--bootstrap", required=True, help="host:port")
    made.add_argument("--kind", choices=KINDS, action="append", help="default: all kinds")
    return made


def follow(arguments: argparse.Namespace, put_of: Callable[[Kind], Put]) -> None:
    """Carry each kind until Ctrl-C or SIGTERM."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    config = load_config(arguments.config).config
    kinds: list[Kind] = arguments.kind or list(KINDS)
    bridges = [Following(config, arguments.bootstrap, (k,), put_of(k)) for k in kinds]
    threads = [threading.Thread(target=b.run, args=(stopping,), daemon=True) for b in bridges]
    for thread in threads:
        thread.start()
    while not stopping.wait(0.5) and all(thread.is_alive() for thread in threads):
        pass
    stopping.set()
    for bridge in bridges:
        bridge.close()

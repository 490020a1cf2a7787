"""`RepresentationReader`: the newest whole version of every representation, kept fresh.

    with RepresentationReader(config, bootstrap) as reader:
        ids, matrix = reader.matrix("item")         # [N, D] float32, as of one manifest
        vector = reader.get("user", "u42").vector   # [D]

Only committed transactions are read, and a version's records show together, when its manifest and
all that the manifest covers have been read. Where the stack's `pointer` names another stack (a
replayed one: `headwater switch`), that one's are read, whole, before anything of it shows.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
import structlog
from numpy.typing import NDArray

from downstream.epoch import Epoch, read_epoch
from downstream.errors import ReaderFailed, ReaderTimeout
from downstream.fold import VersionFold
from downstream.following import Following
from downstream.table import Change, Taken
from downstream.tail import Tail
from settings.config import Config
from topics.errors import TopicUnknown
from topics.manifest import Manifest
from topics.names import KINDS, Kind
from topics.representation import Representation
from topics.scan import Partition

_log = structlog.get_logger()

OnApplied = Callable[[Sequence[Change], float], None]
"""Called from the reader's thread after each version: its changes, and the wall time (Unix seconds)
from which `get` and `matrix` returned them. Not called for what the bootstrap brings."""


class RepresentationReader:
    """Bootstraps from the compacted topics, then tails them in a thread of its own.

    Thread-safe. A broker that goes away and returns costs freshness, nothing else. Memory is the
    vectors held, plus what has been read of versions whose manifest has not come.
    """

    def __init__(
        self,
        config: Config,
        bootstrap: str,
        kinds: Sequence[Kind] = KINDS,
        *,
        on_applied: OnApplied | None = None,
        bootstrap_timeout_seconds: float = 120.0,
        follow: bool = True,
    ) -> None:
        """Returns once the newest version published before the call is held (none may be).
        `follow` False = this stack's own representations, wherever its pointer points.

        Raises WireVersionError, TopicUnknown, TopicUnavailable, or ReaderTimeout.
        """
        self._config = config
        self._bootstrap = bootstrap
        self._kinds = tuple(kinds)
        self._may_follow = follow
        self._follows = config.kafka.topic_prefix
        self._fold = VersionFold(kinds)
        self._tail = Tail(config, bootstrap, self._fold)
        self._on_applied = on_applied
        self._changed = threading.Condition()  # guards the fold's tables and what follows
        self._is_bootstrapped = False
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="representations", daemon=True)
        self._thread.start()
        self._await_bootstrap(bootstrap_timeout_seconds)

    def get(self, kind: Kind, entity_id: str) -> Representation | None:
        """The entity's newest representation (its vector is the caller's own copy), or None."""
        with self._changed:
            self._check()
            return self._fold.tables[kind].get(entity_id)

    def take(self, kind: Kind, ids: Sequence[str]) -> Taken:
        """The vectors of many ids at once, all as of one version: what a model's batch reads."""
        with self._changed:
            self._check()
            return self._fold.tables[kind].take(ids)

    def matrix(self, kind: Kind) -> tuple[list[str], NDArray[np.float32]]:
        """(ids, `[N, D]` float32) of every entity of `kind`, as of one manifest; a copy."""
        return self.matrix_of_version(kind)[1:]

    def matrix_of_version(self, kind: Kind) -> tuple[int | None, list[str], NDArray[np.float32]]:
        """`matrix`, preceded by the version it is as of (None before the first)."""
        with self._changed:
            self._check()
            ids, vectors = self._fold.tables[kind].matrix()
            return self._version(), ids, vectors

    def as_of(self, version: int) -> Epoch:
        """Every vector as it was at one version, which stays while this reader goes on.

        Raises VersionGone where that version is no longer kept whole, TopicError.
        """
        with self._changed:
            self._check()
            kafka = self._config.kafka.model_copy(update={"topic_prefix": self._follows})
        followed = self._config.model_copy(update={"kafka": kafka})
        return read_epoch(followed, self._bootstrap, version, self._kinds)

    def everything(self, kind: Kind) -> tuple[list[str], Taken]:
        """(ids, what `take` gives for them) of every entity of `kind`, as of one version."""
        with self._changed:
            self._check()
            ids, _ = self._fold.tables[kind].matrix()
            return ids, self._fold.tables[kind].take(ids)

    def count(self, kind: Kind) -> int:
        """Entities held."""
        with self._changed:
            return len(self._fold.tables[kind])

    @property
    def version(self) -> int | None:
        """The version that `get` and `matrix` are as of; None before the first."""
        with self._changed:
            self._check()
            return self._version()

    @property
    def follows(self) -> str:
        """Topic prefix of the stack that `get` and `matrix` are of. Versions count per stack."""
        with self._changed:
            return self._follows

    @property
    def manifest(self) -> Manifest | None:
        """Its manifest."""
        with self._changed:
            self._check()
            return self._fold.manifest

    @property
    def records_refused(self) -> int:
        """Records skipped because their bytes are not what their topic carries."""
        return self._tail.refused

    def staleness(self) -> float:
        """Seconds since the version held was cut from the trainer's committed state
        (`created_ms` of its manifest); infinite before the first. It grows while nothing new is
        learnt, too: with `manifest.event_ms` one can tell."""
        manifest = self.manifest
        return math.inf if manifest is None else max(0.0, time.time() - manifest.created_ms / 1000)

    def wait_until(self, version: int, timeout: float) -> bool:
        """True once `version` or a newer one is held. Raises ReaderTimeout after `timeout` seconds,
        ReaderFailed if the reader ends meanwhile."""

        def settled() -> bool:
            held = self._version()
            return self._has_ended() or (held is not None and held >= version)

        with self._changed:
            reached = self._changed.wait_for(settled, timeout)
            self._check()
            if not reached:
                raise ReaderTimeout(
                    f"version {version} did not come in {timeout:g} s, newest: {self._version()}"
                )
            return True

    def failure(self) -> str | None:
        """Why the reader has stopped, or None while it runs (for /healthz)."""
        return None if self._failure is None else str(self._failure)

    def positions(self) -> Mapping[Partition, int]:
        """Next offset to read per partition (for `topics.lag.LagMonitor`)."""
        return dict(self._tail.positions)

    def close(self) -> None:
        """Stop the thread and leave Kafka. Afterwards nothing is served."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await_bootstrap(self, timeout_seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_bootstrapped or self._failure is not None, timeout_seconds
            )
            is_bootstrapped, failure = self._is_bootstrapped, self._failure
        if is_bootstrapped:
            return
        self.close()
        if failure is not None:
            raise failure
        raise ReaderTimeout(
            f"the representations were not read in {timeout_seconds:g} s: is the broker there?"
        )

    def _run(self) -> None:
        following: Following | None = None
        try:
            if self._may_follow:
                following = Following(self._config, self._bootstrap)
            if following is not None and following.followed != self._config:
                self._follow(following.followed)
            else:
                self._tail.bootstrap(self._stopping.is_set)
            with self._changed:
                self._is_bootstrapped = True
                self._changed.notify_all()
            while not self._stopping.is_set():
                self._tail.read()
                self._show()
                if following is not None and following.moved():
                    self._follow(following.followed)
        except Exception as error:  # noqa: BLE001  # whatever it is, callers must be told
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            _log.error("reader_stopped", error=str(error))
        finally:
            self._tail.close()
            if following is not None:
                following.close()

    def _follow(self, config: Config) -> None:
        """Read another stack's representations to their newest version, then show these instead.

        Until then, and for good if it has no such topics, what was shown is shown.
        """
        fold = VersionFold(self._kinds)
        tail = Tail(config, self._bootstrap, fold)
        try:
            tail.bootstrap(self._stopping.is_set)
        except TopicUnknown as error:
            tail.close()
            _log.error("pointer_not_followed", to=config.kafka.topic_prefix, error=str(error))
            if not self._is_bootstrapped:
                self._tail.bootstrap(self._stopping.is_set)
            return
        with self._changed:
            left, self._tail, self._fold = self._tail, tail, fold
            self._follows = config.kafka.topic_prefix
            self._changed.notify_all()
        left.close()
        _log.info("reader_follows", topic_prefix=config.kafka.topic_prefix, version=self._version())

    def _show(self) -> None:
        with self._changed:
            changes = self._fold.advance()
            if changes is None:
                return
            self._changed.notify_all()
        if self._on_applied is not None:
            self._on_applied(changes, time.time())

    def _version(self) -> int | None:
        return None if self._fold.manifest is None else self._fold.manifest.version

    def _has_ended(self) -> bool:
        return self._failure is not None or self._stopping.is_set()

    def _check(self) -> None:
        if self._failure is not None:
            raise ReaderFailed(f"the reader has stopped: {self._failure}") from self._failure
        if self._stopping.is_set():
            raise ReaderFailed("the reader is closed")

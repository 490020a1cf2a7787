"""Checkpoints of the store while it trains: hard links between two steps, the rest in a thread.

Taking the links is the trainer's own work, for a checkpoint is of one commit. Reading new tables
for their checksums, copying to another disk and deleting old ones happen beside training. A failure
there costs that checkpoint and is logged and counted; only links that the store's own disk refuses
poison the store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from embedding_store.checkpoints import (
    About,
    Checkpoint,
    Retention,
    complete,
    list_checkpoints,
    next_name,
    prune,
    remove_unfinished,
    same_disk,
)
from embedding_store.copies import copy_checkpoint
from embedding_store.errors import StoreError
from embedding_store.store import EmbeddingStore
from settings.config import Config
from settings.load import ConfigError
from trainer import metrics
from trainer.durable import Progress, stored_progress

_log = structlog.get_logger()


def checkpoints_directory(store: Path, config: Config) -> Path:
    """Where the checkpoints of the store at `store` are."""
    given = config.checkpoints.directory
    return Path(given) if given else store.with_name(f"{store.name}.checkpoints")


class Checkpointing:
    """Takes a checkpoint when one is due; at most one is under way."""

    def __init__(
        self,
        config: Config,
        store: EmbeddingStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Clears away what a killed process left half-made. Raises ConfigError if the directory is
        on another disk than the store, or the copies' one is the same directory."""
        settings = config.checkpoints
        self._store, self._clock, self._wall = store, clock, wall
        self._every = settings.every / 1000
        self._scrub_every = settings.scrub_every / 1000
        self._retention = Retention(
            kept=settings.kept, hourly=settings.hourly, daily=settings.daily
        )
        self._directory = checkpoints_directory(store.path, config)
        self._copies = Path(settings.copy_to) if settings.copy_to else None
        self._thread: threading.Thread | None = None
        self._taken_at = self._scrubbed_at = clock()
        if self._every == 0:
            return
        if not same_disk(self._directory, store.path):
            raise ConfigError(
                f"checkpoints.directory: expected one on the store's disk, got {self._directory}: "
                "hard links cannot leave it; name another disk in checkpoints.copy_to"
            )
        if self._copies is not None and self._copies.absolute() == self._directory.absolute():
            raise ConfigError("checkpoints.copy_to: expected another place than the checkpoints'")
        newest = list_checkpoints(self._directory)[:1]
        self._commit_id = newest[0].commit_id if newest else 0
        # A process that never lives for `every` must take some, too.
        created_ms = newest[0].created_ms if newest else 0
        age = self._wall() - created_ms / 1000 if store.commit_id else 0.0
        self._taken_at -= min(max(age, 0.0), self._every)
        for folder in (self._directory, self._copies):
            if folder is not None:
                remove_unfinished(folder)

    def after_commit(self) -> None:
        """Take one if it is due. Raises StorePoisoned if the store's disk refuses the links."""
        if self._every == 0 or self._clock() - self._taken_at < self._every or self.busy:
            return
        if self._store.commit_id != self._commit_id:
            self.take()

    def take(self) -> None:
        """Take one now, of the newest commit; waits for one that is under way."""
        self.wait()
        started = time.perf_counter()
        commit_id, created_ms = self._store.commit_id, int(self._wall() * 1000)
        self._directory.mkdir(parents=True, exist_ok=True)
        name = next_name(commit_id, self._directory, self._copies)
        taken = self._directory / f".taking-{name}"
        ranges = self._store.table_ranges()
        self._store.checkpoint(taken)
        metrics.CHECKPOINT_STALL.observe(time.perf_counter() - started)
        self._taken_at, self._commit_id = self._clock(), commit_id
        about = _about(stored_progress(self._store))

        def finish() -> Checkpoint:
            return complete(
                taken,
                name,
                commit_id=commit_id,
                created_ms=created_ms,
                ranges=ranges,
                about=about,
            )

        self._thread = threading.Thread(
            target=self._finish, args=(finish,), name="checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Until the one under way is complete, copied, and old ones are deleted."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def _finish(self, finish: Callable[[], Checkpoint]) -> None:
        doing = "completing"
        try:
            checkpoint = finish()
            prune(self._directory, self._retention)
            metrics.LAST_CHECKPOINT.labels("hard_links").set(checkpoint.created_ms / 1000)
            _log.info("checkpoint_taken", path=str(checkpoint.path), bytes=checkpoint.bytes)
            if self._copies is not None:
                doing = "copying"
                self._copy(checkpoint, self._copies)
        except (StoreError, OSError) as error:
            metrics.CHECKPOINT_FAILURES.labels(doing).inc()
            _log.error("checkpoint_failed", doing=doing, reason=str(error))

    def _copy(self, checkpoint: Checkpoint, copies: Path) -> None:
        scrub = self._scrub_every > 0 and self._clock() - self._scrubbed_at >= self._scrub_every
        report = copy_checkpoint(checkpoint, copies, scrub=scrub)
        if scrub:
            self._scrubbed_at = self._clock()
        prune(copies, self._retention)
        metrics.LAST_CHECKPOINT.labels("copy").set(checkpoint.created_ms / 1000)
        _log.info(
            "checkpoint_copied",
            path=str(report.checkpoint.path),
            bytes_copied=report.bytes_copied,
            bytes_linked=report.bytes_linked,
        )


def _about(progress: Progress) -> About:
    """What a person asks who has to choose one."""
    return {
        "version": progress.version,
        "step": progress.step,
        "event_ms": progress.now_ms,
        "offsets": {
            topic: {str(partition): offset for partition, offset in sorted(offsets.items())}
            for topic, offsets in sorted(progress.offsets.items())
        },
    }

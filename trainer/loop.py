"""From samples to committed state to published versions. The order of one round:

    1  take a batch of records, in the order of the log
    2  predict what is seen for the first time, with the state before the batch; keep the prediction
    3  score what became final, with the prediction made at its first sight
    4  learn: dense weights, rows, running moments; update the entities that were touched
    5  at a cut: compute the touched entities' vectors from the state about to be committed
    6  stage everything: rows, weights, random state, evaluation, pending predictions, entities,
       source offsets, version, the version's encoded records (outbox)
    7  store.commit(): all of it or nothing, synced
    8  publish the outbox in one Kafka transaction
    9  mark the version done; durable with the next commit

A crash before 7 loses nothing: the batch is read again from the stored offsets. A crash after 7 and
before 9 publishes the same bytes once more at the next start. Under cut_by = "count", batches,
commits and versions depend on the log alone, so a run that crashed ends with the same bytes as one
that did not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import structlog

from embedding_store.store import EmbeddingStore
from settings.config import Config
from topics.manifest import Manifest, TaskEvaluation
from topics.names import Kind
from topics.publisher import Record
from topics.sample import Sample
from trainer import metrics
from trainer.batch import F32, build_batch, read_domains, read_labels
from trainer.durable import recover_state, stage_state
from trainer.errors import SourceLost
from trainer.evaluation import Evaluation
from trainer.loss import loss_name, trains_on
from trainer.outbox import Outbox
from trainer.representation import Representations, newest_event_ms
from trainer.slots import plan_slots
from trainer.source import Source, SourceRecord, retry_while_away
from trainer.step import Learner

_POLL_SECONDS = 0.1
_REJECTED_TOLD = 10  # lines that are no samples are logged so often, then each thousandth
_log = structlog.get_logger()


class VersionSink(Protocol):
    """Where versions go: `topics.publisher.Publisher`, or a list in a bounded run."""

    def publish(self, version: int, records: list[Record], manifest: Manifest) -> Manifest:
        """Make the version readable, whole; raises TopicUnavailable to be asked again."""


class Loop:
    """The trainer of one store."""

    def __init__(
        self,
        config: Config,
        store: EmbeddingStore,
        *,
        sink: VersionSink | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Recover the last commit's state. `sink` None = a run that publishes nothing.

        Raises StateMismatch, and ConfigError for an unknown model.
        """
        self._config = config
        self._store = store
        self._sink = sink
        self._clock = clock
        self.plan = plan_slots(config)
        self._loss = loss_name(config)
        self._learner = Learner(self.plan, config, store)
        self.progress = recover_state(store, self._learner, self.plan, config)
        self.evaluation = Evaluation(
            store,
            self.plan.tasks,
            self.plan.domains,
            window_ms=config.trainer.evaluation_window,
        )
        self._representations = Representations(
            store, self._learner, config.publish.cross_half_life
        )
        self._outbox = Outbox(store)
        self._buffer: list[SourceRecord] = []
        self._dirty = False
        self._marked = False
        self._committed_at = clock()

    def run(self, source: Source, stopping: Callable[[], bool] = lambda: False) -> None:
        """Until the source ends or `stopping`; returns with everything learnt committed and
        published. Raises TrainerError, StoreError or TopicError: what is committed stays."""
        for records, manifest in self._outbox.pending():
            self._publish(records, manifest, {}, stopping)
        while not stopping():
            batch = self._take(source, stopping)
            if batch:
                self._learn(batch)
            if self._cut_is_due():
                self._commit(source, stopping)
            if source.at_end and not batch and not self._buffer:
                break
        if self._dirty:
            self._commit(source, stopping)
        if self._marked:
            self._store.commit()
            self._marked = False

    # -- 1: a batch ---------------------------------------------------------------------------

    def _take(self, source: Source, stopping: Callable[[], bool]) -> list[SourceRecord]:
        """The next batch; empty if there is none yet.

        By count, a batch is not handed out until it is full or the source has ended: whatever the
        log's reader delivers when, the same records come together.
        """
        trainer, buffer = self._config.trainer, self._buffer
        size = trainer.batch_samples_max
        if trainer.cut_by == "count":
            while len(buffer) < size and not source.at_end and not stopping():
                buffer += source.poll(size - len(buffer), _POLL_SECONDS)
            if len(buffer) < size and not source.at_end:
                return []
        else:
            buffer += source.poll(1, min(_POLL_SECONDS, trainer.commit_every / 1000))
            closes_at = self._clock() + trainer.batch_wait / 1000
            while 0 < len(buffer) < size and not source.at_end:
                left = closes_at - self._clock()
                if left <= 0:
                    break
                buffer += source.poll(size - len(buffer), left)
        batch, self._buffer = buffer[:size], buffer[size:]
        return batch

    # -- 2, 3, 4: predict, score, learn -------------------------------------------------------

    def _learn(self, records: list[SourceRecord]) -> None:
        started = time.perf_counter()
        samples = self._note(records)
        first_sight = self._first_sights(samples)
        predicted: dict[str, F32] = {}
        chosen = [
            i
            for i, sample in enumerate(samples)
            if first_sight[i] or trains_on(self._loss, sample.state)
        ]
        if chosen:
            batch = build_batch([samples[i] for i in chosen], self.plan)
            seen = [first_sight[i] for i in chosen]
            result = self._learner.step(batch, now_ms=self.progress.now_ms)
            for b, sample in enumerate(batch.samples):
                if seen[b] and sample.state == "final":
                    predicted[sample.impression_id] = result.logits[b]
                elif seen[b]:
                    self.evaluation.remember(sample.impression_id, result.logits[b])
            self._representations.observe(batch, result.cross, seen)
            for slot, created in result.rows_created.items():
                total = self.progress.rows_created.get(slot, 0) + created
                self.progress.rows_created[slot] = total
            for (slot, reason), count in batch.rejected.items():
                metrics.SLOT_VALUES_REJECTED.labels(slot, reason).inc(count)
        self._score([s for s in samples if s.state == "final"], predicted)
        self.progress.step += 1
        self._dirty = True
        metrics.STEPS.inc()
        metrics.STAGE.labels("train").observe(time.perf_counter() - started)

    def _note(self, records: list[SourceRecord]) -> list[Sample]:
        """Offsets, times and counts of a batch; its samples."""
        progress, wall_ms = self.progress, time.time() * 1000
        samples: list[Sample] = []
        for record in records:
            progress.offsets.setdefault(record.topic, {})[record.partition] = record.offset + 1
            progress.watermark_ms = max(progress.watermark_ms, record.watermark_ms)
            if record.joined_ms >= 0:
                queued = max(0.0, wall_ms - record.joined_ms) / 1000
                metrics.QUEUE.observe(queued)
            if record.sample is None:
                progress.rejected += 1
                metrics.REJECTED.inc()
                where = f"{record.topic}[{record.partition}]@{record.offset}"
                if progress.rejected <= _REJECTED_TOLD or progress.rejected % 1000 == 0:
                    _log.warning(
                        "sample_rejected",
                        at=where,
                        reason=record.rejected,
                        rejected=progress.rejected,
                    )
                continue
            sample = record.sample
            samples.append(sample)
            progress.samples[sample.state] = progress.samples.get(sample.state, 0) + 1
            progress.now_ms = max(progress.now_ms, newest_event_ms(sample))
            progress.produced_ms = max(progress.produced_ms, sample.produced_ms)
            metrics.SAMPLES.labels(sample.state).inc()
            if record.joined_ms >= 0 and sample.state != "correction" and sample.elapsed_ms > 0:
                # Deliberate, so kept apart from the other stages: the window, or join.elapsed.
                held = max(0.0, record.joined_ms - sample.produced_ms) / 1000
                metrics.STAGE.labels("hold").observe(held)
        metrics.LAST_EVENT.set(progress.now_ms / 1000)
        return samples

    def _first_sights(self, samples: list[Sample]) -> list[bool]:
        """Which samples are the first that is seen of their impression."""
        pending = self.evaluation.pending([s.impression_id for s in samples])
        here: set[str] = set()
        first: list[bool] = []
        for sample, waits in zip(samples, pending, strict=True):
            seen = waits or sample.impression_id in here
            first.append(not seen and sample.state != "correction")
            if first[-1]:
                here.add(sample.impression_id)
            if sample.state == "final" and not seen and self._loss != "plain":
                self.progress.unseen_finals += 1
        return first

    def _score(self, finals: list[Sample], predicted: dict[str, F32]) -> None:
        if not finals:
            return
        waited = [s.impression_id for s in finals if s.impression_id not in predicted]
        known = predicted | dict(zip(waited, self.evaluation.recall(waited), strict=True))
        logits = np.stack([known[s.impression_id] for s in finals])
        labels, mask = read_labels(finals, self.plan)
        self.evaluation.score(
            logits,
            labels,
            mask=mask,
            domain=read_domains(finals, self.plan),
            event_ms=np.asarray([s.event_ms for s in finals], np.int64),
            users=[s.user_id for s in finals],
        )

    # -- 5 to 9: commit and publish -----------------------------------------------------------

    def _cut_is_due(self) -> bool:
        trainer = self._config.trainer
        if not self._dirty:
            return False
        if trainer.cut_by == "count":
            return self.progress.step % trainer.commit_every_steps == 0
        return self._clock() - self._committed_at >= trainer.commit_every / 1000

    def _commit(self, source: Source, stopping: Callable[[], bool]) -> None:
        started = time.perf_counter()
        cut = self._cut_version()
        self.evaluation.stage()
        self._representations.stage()
        stage_state(self._store, self._learner, self.progress)
        self._store.commit()
        self._dirty = self._marked = False
        self._committed_at = self._clock()
        seconds = time.perf_counter() - started
        metrics.COMMIT.observe(seconds)
        metrics.STAGE.labels("commit").observe(seconds)
        metrics.observe_store(self._store)
        source.committed(self.progress.offsets)
        if cut is not None:
            records, manifest, produced_ms = cut
            self._publish(records, manifest, produced_ms, stopping)

    def _cut_version(self) -> tuple[list[Record], Manifest, dict[Kind, list[int]]] | None:
        """The version of this commit, put into the outbox; None if none is due."""
        totals = self.evaluation.totals()
        metrics.observe_progressive(totals, "all")
        metrics.observe_progressive(self.evaluation.latest(), "latest")
        if self._sink is None:
            self._representations.forget_touched()
            return None
        if not self._representations.any_touched:
            return None
        progress = self.progress
        progress.commits_since_version += 1
        if progress.commits_since_version < self._config.publish.every_commits:
            return None
        progress.commits_since_version = 0
        progress.version += 1
        cut = self._representations.cut(progress.version, progress.step)
        manifest = Manifest(
            version=progress.version,
            step=progress.step,
            created_ms=self._created_ms(),
            event_ms=progress.now_ms,
            watermark_ms=progress.watermark_ms,
            counts=cut.counts,
            source_offsets={
                topic: dict(sorted(offsets.items()))
                for topic, offsets in sorted(progress.offsets.items())
            },
            evaluation={
                task: TaskEvaluation(
                    auc=report["auc"],
                    ne=report["ne"],
                    pcoc=report["pcoc"],
                    samples=int(report["samples"] or 0),
                    positives=int(report["positives"] or 0),
                )
                for task, report in totals.items()
            },
        )
        self._outbox.stage(cut.records, manifest)
        return cut.records, manifest, cut.produced_ms

    def _created_ms(self) -> int:
        """By count, bytes must not depend on when they were made: the newest event's arrival."""
        if self._config.trainer.cut_by == "count":
            return self.progress.produced_ms
        return int(time.time() * 1000)

    def _publish(
        self,
        records: list[Record],
        manifest: Manifest,
        produced_ms: dict[Kind, list[int]],
        stopping: Callable[[], bool],
    ) -> None:
        sink, version = self._sink, manifest.version
        if sink is None:
            return
        started = time.perf_counter()
        try:
            retry_while_away(
                f"publishing version {version}",
                lambda: sink.publish(version, records, manifest),
                stopping,
            )
        except SourceLost:
            if not stopping():
                raise
            _log.warning("version_left_in_outbox", version=version)
            return
        self._outbox.mark_done(version)
        self._marked = True
        metrics.STAGE.labels("publish").observe(time.perf_counter() - started)
        metrics.observe_published(version, produced_ms)

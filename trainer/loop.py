"""From samples to committed state to published versions. The order of one round:

    1  take a portion of the log: a batch of samples, decoded and hashed ahead by another process
    2  predict what is seen for the first time, with the state before the batch; keep the prediction
    3  score what became final, with the prediction made at its first sight
    4  learn: dense weights, rows, running moments; update the entities that were touched
    5  at a cut: delete a slice of the rows whose time is over; compute the touched entities'
       vectors from the state about to be committed
    6  stage everything: rows, weights, random state, evaluation, pending predictions, entities,
       source offsets, version, the version's encoded records (outbox)
    7  commit: store.commit_begin() takes a copy, and while it is written the loop goes on with 1 to
       4 of the next batches; once `wait` has returned, all of it is on disk
    8  then publish the outbox in one Kafka transaction, on a thread, while the loop goes on
    9  mark the version done; durable with the next commit after its transaction

A crash before 7 loses nothing: the batch is read again from the stored offsets. A crash after 7 and
before 9 publishes the same bytes once more at the next start. Versions are sent in their order, and
only those that are committed. Under cut_by = "count", batches,
commits and versions depend on the log alone, so a run that crashed ends with the same bytes as one
that did not.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import structlog

from embedding_store.store import EmbeddingStore, PendingCommit
from settings.config import Config
from topics.manifest import Manifest
from trainer import metrics
from trainer.arms import Arms
from trainer.aside import Aside
from trainer.batch import CORRECTION, F32, FINAL, I64, STATE_NAMES, Batch
from trainer.commands import Commands
from trainer.cutting import Cutting
from trainer.drift import DriftMonitor
from trainer.durable import recover_state, stage_state
from trainer.evaluation import Evaluation
from trainer.expiring import Expiring
from trainer.feed import PortionSource
from trainer.forgetting import Forgetting
from trainer.loss import loss_name, reads
from trainer.portion import Portion
from trainer.publication import Publication, Version, VersionSink
from trainer.representation import Representations
from trainer.slots import plan_slots
from trainer.steering import ReadOld, Steering
from trainer.step import Learner

Mask = npt.NDArray[np.bool_]
_REFUSED_TOLD = 10  # lines that are no samples are logged so often, then each thousandth
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Commit:
    """One that has begun, and what is to be done once it is durable."""

    pending: PendingCommit
    started: float
    offsets: dict[str, dict[int, int]]
    version: Version | None


class Loop:
    """The trainer of one store."""

    def __init__(
        self,
        config: Config,
        store: EmbeddingStore,
        *,
        sink: VersionSink | None,
        published: Mapping[int, Manifest] | None = None,
        commands: Commands | None = None,
        read_old: ReadOld | None = None,
        after_commit: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Recover the last commit's state. `sink` None = a run that publishes nothing.

        `published` are the manifests that the topic has, by version: a store that was restored is
        behind them (see `trainer.relearning`). `commands` are an operator's, and `read_old` finds
        what a rollback publishes again. `after_commit` is called between two steps, while no
        commit is under way.

        Raises StateMismatch, and ConfigError for an unknown model or a gate that nobody watches.
        """
        self._config = config
        self._store = store
        self._sink = sink
        self._clock = clock
        self.plan = plan_slots(config)
        self._loss = loss_name(config)
        self.learner = Learner(self.plan, config, store)
        self.progress = recover_state(store, self.learner, self.plan, config)
        self.evaluation = Evaluation(
            store,
            self.plan.tasks,
            self.plan.domains,
            window_ms=config.trainer.evaluation_window,
        )
        self.arms = Arms(store, config, self.plan) if config.evaluation.arms else None
        self.drifts = _monitor(store, self.plan.tasks)
        self._representations = Representations(
            store, self.learner, config.publish, by_count=config.trainer.cut_by == "count"
        )
        self._expiring = Expiring(config, store, self._representations, self.progress)
        self._steering = Steering(store, commands, read_old)
        self._cutting = Cutting(
            config,
            store,
            self._representations,
            self._steering,
            progress=self.progress,
            evaluation=self.evaluation,
            drifts=self.drifts,
            published=published or {},
        )
        self._after_commit = after_commit
        evaluations = [self.evaluation, *(self.arms.evaluations.values() if self.arms else ())]
        self._forgetting = Forgetting(store, self._representations, evaluations, self._cutting)
        self._publication: Publication | None = None
        self._dirty = False
        self._marked = False
        self._committing: _Commit | None = None
        self._aside = Aside()
        self._committed_at = clock()

    def run(self, source: PortionSource, stopping: Callable[[], bool] = lambda: False) -> None:
        """Until the source ends or `stopping`; returns with everything learnt committed and
        published. Raises TrainerError, StoreError or TopicError: what is committed stays."""
        if self._sink is not None:
            self._publication = Publication(self._sink, stopping)
        try:
            self._publish_pending()
            ahead: Portion | None = None  # taken, but nothing knows of it before it is learnt
            while not stopping():
                portion, ahead = ahead, None
                if portion is None:
                    portion = source.take(
                        lambda: stopping() or self._commit_is_durable() or self._has_news()
                    )
                if portion is not None:
                    ahead = source.take_ready(stopping)
                    self._learn(portion, ahead)
                if self._commit_is_durable():
                    self._finish_commit(source)
                if self._cut_is_due() or self._has_news():
                    self._commit(source)
                if portion is None and source.at_end:
                    break
            if self._dirty:
                self._commit(source)
            self._finish_commit(source)
            self._finish_publication()
        finally:
            self._aside.close()
            self._steering.close()
            if self._publication is not None:
                self._publication.close()
            if self.arms is not None:
                self.arms.close()

    # -- 2, 3, 4: predict, score, learn -------------------------------------------------------

    def _learn(self, portion: Portion, ahead: Portion | None) -> None:
        started = time.perf_counter()
        self._note(portion)
        samples = None if portion.batch is None else self._forgetting.without(portion.batch)
        if samples is not None:
            self._learn_batch(samples, ahead.batch if ahead is not None else None)
        self.progress.step += 1
        self._dirty = True
        metrics.STEPS.inc()
        metrics.STAGE.labels("train").observe(time.perf_counter() - started)

    def _learn_batch(self, samples: Batch, ahead: Batch | None) -> None:
        first_sight = self._first_sights(samples)
        rows = np.flatnonzero(first_sight | reads(self._loss, samples.state))
        final = samples.state == FINAL
        logits = np.zeros((len(samples), len(self.plan.tasks)), np.float32)
        work: list[Callable[[], None]] = []
        if rows.size:
            batch = samples.take(rows)
            result = self.learner.step(
                batch, now_ms=self.progress.now_ms, ahead=ahead, meanwhile=self._aside.start
            )
            logits[rows] = result.logits
            kept = np.flatnonzero(first_sight & ~final)
            self.evaluation.remember([samples.impressions[b] for b in kept.tolist()], logits[kept])
            seen = (batch, result.cross, first_sight[rows])
            work.append(partial(self._representations.observe, *seen, step=self.progress.step))
            for slot, created in result.rows_created.items():
                total = self.progress.rows_created.get(slot, 0) + created
                self.progress.rows_created[slot] = total
        for (slot, reason), count in samples.rejected.items():
            metrics.SLOT_VALUES_REJECTED.labels(slot, reason).inc(count)
        if self.arms is not None:
            self.arms.observe(samples, logits, first_sight)
        finals = np.flatnonzero(final)
        if finals.size:
            self.learner.count(samples.take(finals), now_ms=self.progress.now_ms)
            work.append(self._scoring(samples, logits, finals, first_sight))
        self._aside.hold(partial(_do_all, work))

    def _note(self, portion: Portion) -> None:
        """Offsets, times and counts of a portion."""
        progress = self.progress
        for topic, offsets in portion.offsets.items():
            progress.offsets.setdefault(topic, {}).update(offsets)
        progress.watermark_ms = max(progress.watermark_ms, portion.watermark_ms)
        for refused in portion.refused:
            progress.rejected += 1
            metrics.REJECTED.inc()
            if progress.rejected <= _REFUSED_TOLD or progress.rejected % 1000 == 0:
                _log.warning("sample_rejected", record=refused, rejected=progress.rejected)
        batch = portion.batch
        if batch is None:
            return
        progress.now_ms = max(progress.now_ms, int(batch.newest_ms.max()))
        progress.produced_ms = max(progress.produced_ms, int(batch.produced_ms.max()))
        for state, count in zip(STATE_NAMES, np.bincount(batch.state, minlength=3), strict=True):
            if count:
                progress.samples[state] = progress.samples.get(state, 0) + int(count)
                metrics.SAMPLES.labels(state).inc(int(count))
        metrics.observe_arrivals(batch, portion.joined_ms)
        metrics.LAST_EVENT.set(progress.now_ms / 1000)

    def _first_sights(self, samples: Batch) -> Mask:
        """[B] which samples are the first that is seen of their impression."""
        pending = self.evaluation.pending(samples.impressions)
        if not any(pending) and len(set(samples.impressions)) == len(samples):
            if self._loss != "plain":
                self.progress.unseen_finals += int((samples.state == FINAL).sum())
            return np.asarray(samples.state != CORRECTION)
        states = samples.state.tolist()
        here: set[bytes] = set()
        first = np.zeros(len(samples), bool)
        for b, impression in enumerate(samples.impressions):
            seen = pending[b] or impression in here
            if not seen and states[b] != CORRECTION:
                first[b] = True
                here.add(impression)
            if states[b] == FINAL and not seen and self._loss != "plain":
                self.progress.unseen_finals += 1
        return first

    def _scoring(
        self, samples: Batch, logits: F32, finals: I64, first_sight: Mask
    ) -> Callable[[], None]:
        """Score what is final with the prediction of its first sight: just made, or kept."""
        # Of an impression whose first sight and final lie in one batch, the first sight's row: it
        # is remembered before its final asks for it.
        waited = finals[~first_sight[finals]]
        logits[waited] = self.evaluation.recall([samples.impressions[b] for b in waited.tolist()])
        finals = finals[samples.kept[finals]]  # a fair share of all impressions
        if self.drifts is not None:
            self.drifts.prepare()  # a window will close
        return partial(
            self.evaluation.score,
            logits[finals],
            samples.labels[finals],
            mask=samples.mask[finals],
            domain=samples.domain[finals],
            event_ms=samples.event_ms[finals],
            users=[samples.users[b] for b in finals.tolist()],
        )

    # -- 5 to 9: commit and publish -----------------------------------------------------------

    def _cut_is_due(self) -> bool:
        trainer = self._config.trainer
        if not self._dirty:
            return False
        if trainer.cut_by == "count":
            return self.progress.step % trainer.commit_every_steps == 0
        return self._clock() - self._committed_at >= trainer.commit_every / 1000

    def _commit(self, source: PortionSource) -> None:
        """Begin a commit; a small one is durable with that, a large one is finished later."""
        self._finish_commit(source)
        started = time.perf_counter()
        self._aside.finish()
        self._mark_published()
        self._obey()
        self._expiring.before_commit()
        version = self._cut_version()
        self._watch_drift()
        self.evaluation.stage()
        if self.arms is not None:
            self.arms.stage()
            metrics.observe_arms(self.arms.totals())
        self._representations.stage()
        self._steering.stage()
        stage_state(self._store, self.learner, self.progress)
        offsets = {topic: dict(ends) for topic, ends in self.progress.offsets.items()}
        self._committing = _Commit(self._store.commit_begin(), started, offsets, version)
        self._dirty = self._marked = False
        self._committed_at = self._clock()
        if self.arms is not None and self.arms.due(self.progress.now_ms):
            self._finish_commit(source)  # the copy is of this commit, whenever it became durable
            self.arms.snapshot(self.progress.now_ms)
        if self._commit_is_durable():
            self._finish_commit(source)

    def _watch_drift(self) -> None:
        if self.drifts is None:
            return
        for window, sums in self.evaluation.closed_windows(self.drifts.closed_to):
            for drift in self.drifts.close_window(window, sums):
                metrics.DRIFTS.labels(drift.task, drift.measure).inc()
                metrics.LAST_DRIFT.labels(drift.task, drift.measure).set(window / 1000)
                _log.warning("drift", task=drift.task, measure=drift.measure, window_ms=window)

    def _commit_is_durable(self) -> bool:
        """Whether one is under way that only waits to be finished (or has failed)."""
        return self._committing is not None and self._committing.pending.done

    def _finish_commit(self, source: PortionSource) -> None:
        """Wait for the commit under way, if any; then, and not before, publish what it holds."""
        commit, self._committing = self._committing, None
        if commit is None:
            return
        commit.pending.wait()
        seconds = time.perf_counter() - commit.started
        metrics.COMMIT.observe(seconds)
        metrics.STAGE.labels("commit").observe(seconds)
        metrics.observe_store(self._store)
        source.committed(commit.offsets)
        if commit.version is not None:
            self._publish(commit.version)
        self._after_commit()

    def _cut_version(self) -> Version | None:
        """The version of this commit, put into the outbox; None if none is due."""
        metrics.observe_progressive(self.evaluation.totals(), "all")
        metrics.observe_progressive(self.evaluation.latest(), "latest")
        if self._sink is None:
            self._representations.forget_touched()
            return None
        return self._cutting.cut()

    def _obey(self) -> None:
        for command in self._steering.obey():
            if command.verb == "refresh":
                self._representations.touch_everything()
            elif command.verb == "forget" and command.user_id is not None:
                self._forgetting.forget(command)

    def _has_news(self) -> bool:
        """Whether an operator's word waits for a commit."""
        if self._steering.waits_for_content:
            self._mark_published()
        return self._steering.news(self._cutting.is_drained)

    def _publish(self, version: Version) -> None:
        if self._publication is not None:
            metrics.TOMBSTONES.inc(version.manifest.counts.get("tombstones", 0))
            self._publication.offer(version)

    def _publish_pending(self) -> None:
        """What the store's last commits left in the outbox."""
        for version in self._cutting.pending():
            self._publish(version)

    def _finish_publication(self) -> None:
        """Wait for what is being sent, and commit that it was."""
        if self._publication is not None:
            self._publication.finish()
        if self._mark_published():
            self._store.commit()
            self._marked = False

    def _mark_published(self) -> bool:
        """Take what is readable by now out of the outbox, with the next commit; whether any was."""
        for version in self._publication.published() if self._publication is not None else ():
            self._cutting.mark_done(version)
            self._marked = True
        return self._marked


def _do_all(work: Sequence[Callable[[], None]]) -> None:
    for each in work:
        each()


def _monitor(store: EmbeddingStore, tasks: tuple[str, ...]) -> DriftMonitor | None:
    """None without river, which is one of the extras."""
    if importlib.util.find_spec("river") is None:
        _log.info("drift_not_watched", reason="river is not installed (extra `study`)")
        return None
    return DriftMonitor(store, tasks)

"""Which version goes out with a commit: the next one, an old one once more, or none for now.

Everything a version is made of lies in the store until it is readable: see `trainer.outbox`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from embedding_store.store import EmbeddingStore
from settings.config import Config
from topics.history import FORGOTTEN, OldRecord, OldVersion
from topics.manifest import Manifest, TaskEvaluation
from topics.names import KINDS, Kind, representation_topic
from topics.publisher import Record
from topics.representation import Headers, Representation, encode
from trainer import metrics
from trainer.drift import DriftMonitor
from trainer.durable import Progress
from trainer.evaluation import Evaluation
from trainer.gate import broken_bound, check_gate
from trainer.outbox import Outbox
from trainer.publication import Version
from trainer.relearning import Numbering
from trainer.representation import Representations
from trainer.steering import Steering

Encoded = tuple[bytes, bytes | None, Headers]
"""(key, value, headers)"""
_KIND_OF: Mapping[str, Kind] = {representation_topic(kind): kind for kind in KINDS}


class Cutting:
    """Cuts versions of one store into its outbox. Durable with the commit that is begun next."""

    def __init__(
        self,
        config: Config,
        store: EmbeddingStore,
        representations: Representations,
        steering: Steering,
        *,
        progress: Progress,
        evaluation: Evaluation,
        drifts: DriftMonitor | None,
        published: Mapping[int, Manifest],
    ) -> None:
        """Raises ConfigError for a gate that could not be watched."""
        check_gate(config.publish.gate)
        self._publish, self._by_count = config.publish, config.trainer.cut_by == "count"
        self._representations, self._steering = representations, steering
        self._progress, self._evaluation, self._drifts = progress, evaluation, drifts
        self._tombstones: list[tuple[Kind, str]] = []
        self._outbox = Outbox(store)
        self._numbering = Numbering(published, cut_by=config.trainer.cut_by)

    def bury(self, kinds: Sequence[Kind], user: bytes) -> None:
        """Tombstones of a forgotten user, with the next version that is cut, and whatever holds:
        readers get them beside the version that they are held at."""
        text = user.decode("utf-8", "surrogatepass")
        self._tombstones += [(k, f"user:{text}" if k == "cross" else text) for k in kinds]

    def cut(self) -> Version | None:
        """The version of this commit; None if none is due, or none may go out."""
        if self._tombstones:
            return self._forget()
        old = self._steering.repeated()
        if old is not None:
            return self._repeat(old)
        return self._next()

    def _next(self) -> Version | None:
        progress = self._progress
        if self._steering.rollback is not None or not self._representations.any_touched:
            return None
        progress.commits_since_version += 1
        if progress.commits_since_version < self._publish.every_commits:
            return None
        broken = self._broken_bound()
        if broken is not None:
            return self._hold(broken)
        progress.commits_since_version = 0
        reason = self._steering.open(progress.now_ms)
        progress.version, readable = self._numbering.next(progress)
        cut = self._representations.cut(progress.version, progress.step, progress.now_ms)
        manifest = self._manifest(cut.counts, reason)
        if readable:  # relearnt: it was published before the store was restored
            self._steering.cut(manifest)
            return None
        return self._out(Version(cut.records, manifest, cut.produced_ms))

    def _broken_bound(self) -> str | None:
        gate = self._publish.gate
        if not gate.is_set:
            return None
        latest = self._evaluation.latest()
        drifted = {task: self._drifted(task) for task in latest}
        return broken_bound(gate, latest, drifted, self._progress.now_ms)

    def pending(self) -> list[Version]:
        """What the store's last commits left in the outbox, and readers are not ahead of."""
        found: list[Version] = []
        for records, manifest in self._outbox.pending():
            if self._numbering.is_superseded(manifest.version):
                self._outbox.mark_done(manifest.version)
            else:
                found.append(Version(records, manifest))
        return found

    def mark_done(self, version: int) -> None:
        """The version is readable."""
        self._outbox.mark_done(version)

    def is_drained(self) -> bool:
        """Whether every version that was cut is readable."""
        return self._outbox.is_empty()

    def _out(self, version: Version) -> Version:
        self._outbox.stage(version.records, version.manifest)
        self._steering.cut(version.manifest)
        return version

    def _hold(self, reason: str) -> Version | None:
        """Say it once, by a version without records: readers go on with what they hold."""
        newest = self._steering.newest
        if not self._steering.hold(reason, self._progress.now_ms) or newest is None:
            return None
        self._progress.version, _ = self._numbering.next(self._progress)
        counts = dict.fromkeys(newest.counts, 0)
        manifest = msgspec.structs.replace(
            newest,
            version=self._progress.version,
            counts=counts,
            source_version=newest.version,
            reason=f"held: {reason}",
        )
        return self._out(Version([], manifest))

    def _forget(self) -> Version:
        progress = self._progress
        progress.version, _ = self._numbering.next(progress)
        records: list[Record] = []
        for kind, id_ in self._tombstones:
            key, value, headers = self._tombstone(kind, id_, progress.step, (0, 0))
            records.append((representation_topic(kind), key, value, [*headers, (FORGOTTEN, b"1")]))
        self._tombstones = []
        counts: dict[str, int] = dict.fromkeys((*KINDS, "tombstones"), 0)
        counts["tombstones"] = len(records)
        newest = self._steering.newest or self._manifest(counts, None)
        manifest = msgspec.structs.replace(
            newest,
            version=progress.version,
            counts=counts,
            source_version=newest.version,
            reason="forgotten",
        )
        return self._out(Version(records, manifest))

    def _tombstone(self, kind: Kind, id_: str, step: int, times: tuple[int, int]) -> Encoded:
        """`times`: event and produce time of the newest event in what is deleted."""
        representation = Representation(
            kind=kind,
            id=id_,
            vector=None,
            version=self._progress.version,
            step=step,
            event_ms=times[0],
            produced_ms=times[1],
        )
        return encode(representation, self._publish.dtype)

    def _repeat(self, old: OldVersion) -> Version:
        """An old version's content once more, and all that it lacks kept for when it is let go."""
        progress = self._progress
        progress.version, _ = self._numbering.next(progress)
        counts: dict[str, int] = dict.fromkeys((*KINDS, "tombstones"), 0)
        records: list[Record] = []
        for record in old.records:
            records.append(self._again(record, progress.version))
            counts[_KIND_OF[record.topic] if record.value is not None else "tombstones"] += 1
        self._representations.retouch([(_KIND_OF[r.topic], r.key) for r in old.records])
        manifest = msgspec.structs.replace(
            old.manifest,
            version=progress.version,
            counts=counts,
            source_version=old.manifest.version,
            reason=f"rollback to version {old.manifest.version}",
        )
        metrics.ROLLBACKS.inc()
        return self._out(Version(records, manifest))

    def _again(self, record: OldRecord, version: int) -> Record:
        headers = [
            (name, b"%d" % version if name == "hw_version" else value)
            for name, value in record.headers
        ]
        if record.value is not None:
            return record.topic, record.key, record.value, headers
        of = dict(headers)
        id_ = record.key.decode("utf-8", "surrogatepass")
        times = int(of["hw_event_ms"]), int(of["hw_produced_ms"])
        made = self._tombstone(_KIND_OF[record.topic], id_, int(of["hw_step"]), times)
        return record.topic, *made

    def _drifted(self, task: str) -> int | None:
        return None if self._drifts is None else self._drifts.newest(task)

    def _manifest(self, counts: dict[str, int], reason: str | None) -> Manifest:
        progress = self._progress
        return Manifest(
            version=progress.version,
            step=progress.step,
            created_ms=self._created_ms(),
            event_ms=progress.now_ms,
            watermark_ms=progress.watermark_ms,
            counts=counts,
            source_offsets={
                topic: dict(sorted(offsets.items()))
                for topic, offsets in sorted(progress.offsets.items())
            },
            evaluation={
                task: TaskEvaluation(
                    auc=report["auc"],
                    ne=report["ne"],
                    pcoc=report["pcoc"],
                    drifted_ms=self._drifted(task),
                    samples=int(report["samples"] or 0),
                    positives=int(report["positives"] or 0),
                )
                for task, report in self._evaluation.totals().items()
            },
            reason=reason,
        )

    def _created_ms(self) -> int:
        """By count, bytes must not depend on when they were made: the newest event's arrival."""
        return self._progress.produced_ms if self._by_count else int(time.time() * 1000)

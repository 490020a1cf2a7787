"""What every transfer measurement shares: one upstream run with its versions, replayed in event
time to downstream models that serve before they learn.

The upstream is the trainer's own loop over a joined log; a version becomes readable at the event
time of the newest event in it, rounded up to the publish period. Downstream trainers are those of
`downstream.scenario`; only Kafka is left out, so that a period of ten minutes need not last them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch
import xxhash
from measuring import config_of
from study_frame import Portions
from study_log import Log, joined

from downstream.pretrained import MixTower, mix_tower
from downstream.published import KINDS_READ, Reads
from downstream.scenario.fields import Fields
from downstream.scenario.learner import ScenarioLearner, area_under_curve
from downstream.scenario.model import READS, Shape, scenario_model
from downstream.table import Taken, VectorTable
from downstream.transfer import TransferName
from embedding_store.store import EmbeddingStore
from runtime.sources.simulated import SimulatedTraffic
from settings.config import Config
from topics.impression import Impression
from topics.manifest import Manifest
from topics.names import KINDS, Kind
from topics.publisher import Record
from topics.representation import Representation, decode
from trainer.basis import adopt
from trainer.loop import Loop
from trainer.step import row_layout

START_MS = 1_700_006_400_000
WORLD = {"rate": 60.0, "users": 500, "items": 200, "drift_ms": 600_000}
"""Interests change altogether in ten minutes of event time."""
TELLING = {
    "rate": 40.0, "users": 50, "items": 60, "item_arrival_ms": 30_000, "drift_ms": 600_000,
    "logit_shift": 1.0,
}  # fmt: skip
"""A world in which an upstream can know much of a user before it changes: fewer users and ads, more
clicks. Chosen on seed 100."""
TELLING_UPSTREAM = {"model__first_order": False}
"""What the first-order term says is in no vector."""
INTERESTS = "user_interests"
"""The user's strongest categories now: with them in each impression nobody need learn interests."""
HISTORY = "recent_items"
"""What the user clicked: the upstream's to know."""
BUCKETS = 2**14
TASK = "click"
UPSTREAM_TASK = 0
"""Its place among the kinds."""
CHUNK_MS = 1_000


@dataclass(slots=True)
class Version:
    """One version as a reader would get it."""

    event_ms: int
    records: list[Representation]


@dataclass(slots=True)
class Upstream:
    """A whole run."""

    config: Config
    versions: list[Version] = field(default_factory=list)
    towers: list[tuple[int, MixTower]] = field(default_factory=list)
    """(event time, the mix tower as of then), now and then."""
    bytes_published: int = 0
    vectors: int = 0

    def publish(self, version: int, records: list[Record], manifest: Manifest) -> Manifest:
        """The loop's sink."""
        del version
        decoded = []
        for topic, key, value, headers in records:
            kind: Kind = topic.removeprefix("representations.")  # type: ignore[assignment]
            decoded.append(decode(key, value, headers, kind=kind))
            self.bytes_published += (
                len(key) + len(value or b"") + sum(len(n) + len(v) for n, v in headers)
            )
        self.vectors += len(records)
        self.versions.append(Version(manifest.event_ms, decoded))
        return manifest


def make_log(seed: int, impressions: int, **world: Any) -> tuple[Log, SimulatedTraffic]:
    """The simulator's events, joined; `world` over `WORLD`."""
    settings: dict[str, Any] = {**WORLD, **world}
    source = SimulatedTraffic(start_ms=START_MS, seed=seed, faults=False, **settings)
    return joined(source, upstream_config(source, seed), impressions), source


def upstream_config(
    source: SimulatedTraffic, seed: int, *, without: Container[str] = (), **flags: Any
) -> Config:
    """lfm4ads, a version about every second of event time; `without` these slots."""
    values = dict(source.config_values())
    values["slots"] = {n: spec for n, spec in values["slots"].items() if n not in without}
    settings: dict[str, Any] = {
        "join__policy": "correct",
        "model__name": "lfm4ads",
        "trainer__cut_by": "count",
        "trainer__batch_samples_max": 128,
        "trainer__commit_every_steps": 1,
        "trainer__seed": seed,
        "optimizer__sparse_lr": 0.1,
        "publish__cross_half_life": "120s",
    }
    return config_of(values, **{**settings, **flags})


def run_upstream(
    log: Log,
    config: Config,
    *,
    tower_every: int = 100,
    adopted: Mapping[Kind, Mapping[bytes, Any]] | None = None,
) -> Upstream:
    """Learn the log once; every version, and the mix tower each `tower_every` commits. `adopted`:
    vectors of another run, by entity, whose basis this one begins in."""
    found = Upstream(config)
    torch.manual_seed(config.trainer.seed)
    with (
        tempfile.TemporaryDirectory(prefix="headwater-transfer-") as folder,
        EmbeddingStore.open(
            Path(folder) / "store", row_layout(config), cache_rows_max=200_000, owner="study"
        ) as store,
    ):
        adopt(store, adopted or {})
        commits = 0

        def after_commit() -> None:
            nonlocal commits
            commits += 1
            dense = store.get("trainer", b"dense")
            if commits % tower_every == 0 and dense is not None:
                found.towers.append((loop.progress.now_ms, mix_tower(dense, loop.progress.version)))

        loop = Loop(config, store, sink=found, after_commit=after_commit)
        loop.run(Portions(log, loop.plan, config.trainer))
    return found


class Replayed:
    """A reader whose clock is event time: what a version brings shows at its publish period."""

    def __init__(self, versions: Sequence[Version], period_ms: int) -> None:
        self._versions, self._period_ms = versions, period_ms
        self._next = 0
        self.tables = {kind: VectorTable(kind) for kind in KINDS}

    def advance(self, now_ms: int) -> None:
        """Show what was published by `now_ms`."""
        until_ms = now_ms - now_ms % self._period_ms
        while self._next < len(self._versions) and (
            self._versions[self._next].event_ms <= until_ms
        ):
            for kind, table in self.tables.items():
                table.apply(r for r in self._versions[self._next].records if r.kind == kind)
            self._next += 1

    def stop(self) -> None:
        """Stay at what is shown."""
        self._next = len(self._versions)

    def take(self, kind: Kind, ids: Sequence[str]) -> Taken:
        """As `RepresentationReader.take`."""
        return self.tables[kind].take(ids)


@dataclass(slots=True)
class Traffic:
    """One scenario's impressions and finals in the order they come."""

    chunks: list[tuple[int, list[Impression], dict[str, int]]]
    """(event time of its beginning, served in it, labels that become final in it)."""
    served: int


def traffic(log: Log, domain: str, task: str = TASK, *, since: float = 0.0) -> Traffic:
    """What the scenario's own stream carries, a second of event time at a time, from that share of
    its seconds on: a scenario may begin when the upstream has learnt."""
    shown: dict[int, list[Impression]] = {}
    labels: dict[int, dict[str, int]] = {}
    for line, at in zip(log.lines, log.emitted_ms, strict=True):
        sample = orjson.loads(line)
        if sample["domain"] != domain or sample["state"] == "correction":
            continue
        chunk = at - at % CHUNK_MS
        if sample["state"] == "final":
            labels.setdefault(chunk, {})[sample["impression_id"]] = sample["labels"][task]
        else:
            shown.setdefault(chunk, []).append(
                Impression(
                    impression_id=sample["impression_id"],
                    event_ms=sample["event_ms"],
                    user_id=sample["user_id"],
                    item_id=sample["item_id"],
                    domain=domain,
                    features=sample["features"],
                )
            )
    chunks = [
        (at, shown.get(at, []), labels.get(at, {})) for at in sorted(shown.keys() | labels.keys())
    ]
    chunks = chunks[int(len(chunks) * since) :]
    return Traffic(chunks, sum(len(served) for _, served, _ in chunks))


class CachedFields(Fields):
    """Each impression is hashed once, whatever the number of arms."""

    def __init__(self, config: Config, *, buckets: int = BUCKETS) -> None:
        super().__init__(config, buckets=buckets)
        self._known: dict[str, list[list[int]]] = {}

    def codes(self, impression: Impression) -> list[list[int]]:
        found = self._known.get(impression.impression_id)
        if found is None:
            found = self._known[impression.impression_id] = super().codes(impression)
        return found


@dataclass(slots=True)
class Served:
    """Logit and label of every scored impression, in order of their labels."""

    event_ms: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    missing_share: float
    from_future: int

    def auc(self, since: float = 1 / 3, until: float = 1.0) -> float:
        """Over that part of the scored; nan with one class only."""
        part = slice(int(len(self.labels) * since), int(len(self.labels) * until))
        found = area_under_curve(self.logits[part], self.labels[part])
        return float("nan") if found is None else found


@dataclass(slots=True)
class Arm:
    """One downstream trainer."""

    transfer: TransferName
    fields: CachedFields
    dims: dict[Kind, int]
    tower: MixTower | None = None
    frozen: bool = False
    """Its layers learn no more (`iim`)."""
    reads: Reads | None = None
    seed: int = 0
    share: float = 1.0
    """Of the labels, drawn per impression by `slice_`: what it learns from. It serves and is scored
    on all."""
    slice_: int = 0

    def taught(self, impressions: Iterable[str]) -> set[str] | None:
        """Those that it learns from; None = all."""
        if self.share >= 1:
            return None
        below = int(self.share * 2**64)
        return {
            i for i in impressions if xxhash.xxh3_64_intdigest(i.encode(), seed=self.slice_) < below
        }

    def learner(self, reader: Replayed) -> ScenarioLearner:
        """A fresh one."""
        torch.manual_seed(self.seed)
        reads: Reads = self.reads or READS[self.transfer]
        dims = [self.dims[kind] for kind in KINDS_READ[reads]]
        shape = Shape(len(self.fields), self.fields.buckets)
        model = scenario_model(
            self.transfer, shape, dims, tower=self.tower, frozen=self.frozen, task=UPSTREAM_TASK
        )
        return ScenarioLearner(model, self.fields, reader, reads=reads, dims=dims, task=TASK)


def run_arm(
    arm: Arm,
    reader: Replayed,
    stream: Traffic,
    *,
    freeze_at: float = 1.0,
    swap: Callable[[Replayed], Replayed] | None = None,
) -> Served:
    """Serve and learn the stream; from `freeze_at` of its chunks on learn no more, and read from
    `swap(reader)`."""
    at = int(len(stream.chunks) * freeze_at)

    def before(number: int, learners: list[ScenarioLearner], reader: Replayed) -> Replayed:
        if number != at:
            return reader
        reader = swap(reader) if swap is not None else reader
        for learner in learners:
            learner.freeze()
            learner.read_from(reader)
        return reader

    return run_arms([arm], reader, stream, before=before)[0]


def run_arms(
    arms: Sequence[Arm],
    reader: Replayed,
    stream: Traffic,
    *,
    before: Callable[[int, list[ScenarioLearner], Replayed], Replayed] | None = None,
) -> list[Served]:
    """Each arm serves and learns the same stream, side by side over one reader's vectors. `before`
    each chunk may say what is read from there on."""
    learners = [arm.learner(reader) for arm in arms]
    times: dict[str, int] = {}
    order: list[int] = []
    for number, (now_ms, shown, labels) in enumerate(stream.chunks):
        if before is not None:
            reader = before(number, learners, reader)
        reader.advance(now_ms)
        for learner in learners:
            learner.serve(shown)
        times |= {i.impression_id: i.event_ms for i in shown}
        order += [times.pop(i) for i in labels if i in times]
        for arm, learner in zip(arms, learners, strict=True):
            learner.learn(labels, arm.taught(labels))
    found = []
    for learner in learners:
        report = learner.report()
        logits, known = learner.scored()
        served = Served(np.asarray(order), logits, known, report.missing_share, report.from_future)
        found.append(served)
    return found


def widths(versions: Sequence[Version]) -> dict[Kind, int]:
    """D by kind."""
    found: dict[Kind, int] = {}
    for version in versions[:5]:
        for record in version.records:
            if record.vector is not None:
                found[record.kind] = len(record.vector)
    return found

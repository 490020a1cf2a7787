"""Publication held by the gate or by a rollback: learning goes on, readers follow the manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from downstream.epoch import Epoch
from downstream.reader import RepresentationReader
from embedding_store.store import EmbeddingStore
from tests.live_trainer import LiveTrainer
from tests.sample_stream import make_config, make_samples, write_samples
from tests.test_forgetting import Asked
from tests.test_loop import VersionLog, _run
from tests.test_trainer_stream import _produce
from topics.control import Command
from topics.names import KINDS
from trainer.drift import Drift
from trainer.feed import Feed
from trainer.loop import Loop
from trainer.source import FileSource
from trainer.steering import Steering
from trainer.step import row_layout

Shown = dict[tuple[str, str], bytes]


def _shown(reader: RepresentationReader | Epoch) -> Shown:
    """(kind, id) -> vector, as of one version."""
    found: Shown = {}
    for kind in KINDS:
        ids, vectors = reader.matrix(kind)
        found |= {(kind, i): v.tobytes() for i, v in zip(ids, vectors, strict=True)}
    return found


def _metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"headwater_{name}", labels)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.kill
def test_a_rollback_shows_an_old_version_whole_until_it_is_released(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    samples = make_samples(360)
    with LiveTrainer(tmp_path, kafka, prefix) as trainer:
        _produce(kafka, trainer.config, samples[:60])
        old = trainer.await_published()
        with RepresentationReader(trainer.config, kafka) as reader:
            reader.wait_until(old.version, 120)
            then = _shown(reader)
            _produce(kafka, trainer.config, samples[60:200])
            newer = trainer.await_published()
            reader.wait_until(newer.version, 120)
            later = _shown(reader)
            assert set(later) > set(then), "users came since"
            assert _shown(reader.as_of(old.version)) == then, "one epoch, beside the newest"
            refused = trainer.headwater("rollback", str(newer.version + 1000))
            assert (
                refused.returncode == 1 and "is not kept whole: expected one of" in refused.stderr
            )
            done = trainer.headwater("rollback", str(old.version), "--json")
            assert done.returncode == 0, done.stderr
            repeated = trainer.manifests()[-1]
            assert repeated.source_version == old.version and repeated.version > newer.version
            assert repeated.reason == f"rollback to version {old.version}"
            assert repeated.source_offsets == old.source_offsets
            reader.wait_until(repeated.version, 120)
            assert _shown(reader) == then

            _produce(kafka, trainer.config, samples[200:280])
            trainer.await_learnt()
            trainer.kill()
            trainer.start()
            _produce(kafka, trainer.config, samples[280:])
            trainer.await_learnt()
            assert trainer.manifests()[-1] == repeated, "held, also by the next process"
            assert _shown(reader) == then
            assert trainer.headwater("rollback", "--release").returncode == 0
            trainer.until(lambda: trainer.manifests()[-1].version > repeated.version)
            after = trainer.await_published()
            first = next(m for m in trainer.manifests() if m.version > repeated.version)
            assert first.reason == f"released: held at version {old.version} by a rollback"
            reader.wait_until(after.version, 120)
            users = {i for kind, i in _shown(reader) if kind == "user"}
            assert users == {s.user_id for s in samples}
            now = _shown(reader)
            taken_back = [key for key in then if later[key] != then[key]]
            assert taken_back and all(now[key] != then[key] for key in taken_back)
        with RepresentationReader(trainer.config, kafka) as late:
            assert late.version == after.version


@pytest.mark.slow
def test_a_broken_bound_holds_versions_and_what_was_held_goes_out_when_it_opens(
    tmp_path: Path,
) -> None:
    samples = make_samples(320)
    first = write_samples(samples[:220], tmp_path / "samples.jsonl")
    small = {"cut_by": "count", "batch_samples_max": 16, "commit_every_steps": 3}
    gate = {"ne_max": 0.2, "positives_min": 40}
    held_config = make_config(publish={"gate": gate}, trainer=small)
    log, crashed = VersionLog(), VersionLog()
    digest = _run(tmp_path / "held", held_config, first, log)
    for run, crash_at in enumerate((150, None)):
        found = _run(tmp_path / "crashed", held_config, first, crashed, crash_at, run)
    assert found == digest and crashed.manifests == log.manifests
    assert _metric("publication_held", cause="gate") == 1
    newest = log.manifests[max(log.manifests)]
    assert newest.reason is not None and newest.reason.startswith("held: ne of ")
    assert newest.source_version == newest.version - 1, "readers go on with the version before"
    assert not any(newest.counts.values())
    assert len([m for m in log.manifests.values() if m.reason]) == 1, "said once"
    before = log.manifests[newest.version - 1]
    assert newest.source_offsets == before.source_offsets and newest.step == before.step

    write_samples(samples, tmp_path / "samples.jsonl")
    assert _run(tmp_path / "held", make_config(trainer=small), first, log) is not None
    assert _metric("publication_held", cause="gate") == 0
    opened = log.manifests[newest.version + 1]
    assert opened.reason is not None and opened.reason.startswith("held from event time ")
    seen = {s.user_id for s in samples[:220]}
    published = {key.decode() for topic, key in log.newest if topic == "representations.user"}
    assert published >= seen
    assert opened.counts["user"] > before.counts["user"], "they have accumulated"


def test_an_alarm_of_the_drift_detectors_closes_the_gate(tmp_path: Path) -> None:
    samples, log = make_samples(160), VersionLog()
    file = write_samples(samples[:80], tmp_path / "samples.jsonl")
    _run(tmp_path / "store", make_config(), file, log)
    write_samples(samples, file)
    config = make_config(publish={"gate": {"drift_hold": "1h"}})
    with EmbeddingStore.open(
        tmp_path / "store", row_layout(config), cache_rows_max=2048, owner="test"
    ) as store:
        loop = Loop(config, store, sink=log)
        assert loop.drifts is not None
        loop.drifts.alarms.append(Drift("click", "ne", loop.progress.now_ms))
        source = FileSource(file, loop.progress.offsets)
        loop.run(Feed(source, loop.plan, config.trainer))
        source.close()
    newest = log.manifests[max(log.manifests)]
    assert newest.reason is not None and newest.reason.startswith("held: click drifted in the ")
    assert not any(newest.counts.values())


def test_an_operators_hold_is_told_by_a_metric_also_after_a_restart(tmp_path: Path) -> None:
    with EmbeddingStore.open(
        tmp_path, row_layout(make_config()), cache_rows_max=1024, owner="test"
    ) as store:
        for verb, held in (("rollback", 1), ("release", 0)):
            asked = Asked(Command(verb=verb, created_ms=1, version=7))  # type: ignore[arg-type]
            steering = Steering(store, asked, None)
            assert _metric("publication_held", cause="rollback") == 1 - held
            steering.obey()
            assert _metric("publication_held", cause="rollback") == held
            steering.stage()
            store.commit()
        assert Steering(store, None, None).open(1) == "released: held at version 7 by a rollback"


def test_a_gate_reads_calibration_entropy_and_drift() -> None:
    from settings.publishing import GateConfig
    from trainer.gate import broken_bound

    gate = GateConfig(pcoc_min=0.5, pcoc_max=2.0, ne_max=1.1, drift_hold="1h")
    assert gate.is_set and not GateConfig().is_set

    def of(pcoc: float | None, ne: float | None, positives: int = 500) -> dict[str, object]:
        return {"pcoc": pcoc, "ne": ne, "positives": positives}

    quiet = {"click": None}
    for report, said in (
        (of(1.0, 0.9), None),
        (of(0.4, 0.9), "pcoc of click 0.400 is below 0.5"),
        (of(2.5, 0.9), "pcoc of click 2.500 is above 2"),
        (of(1.0, 1.2), "ne of click 1.200 is above 1.1"),
        (of(9.0, 9.0, 10), None),
        (of(None, None), None),
    ):
        assert broken_bound(gate, {"click": report}, quiet, 10**7) == said  # type: ignore[dict-item]
    drifted = {"click": 10**7 - 3_599_999}
    assert broken_bound(gate, {}, drifted, 10**7) == f"click drifted in the window of {6400001}"
    assert broken_bound(gate, {}, {"click": 10**7 - 3_600_000}, 10**7) is None
    assert np.isfinite(gate.pcoc_max or 0)

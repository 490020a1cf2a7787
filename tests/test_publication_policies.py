"""What goes out with a version: by worth under a budget, everything in its time, in one basis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedding_store.store import EmbeddingStore
from tests.sample_stream import make_config, make_samples, write_samples
from tests.test_loop import VersionLog, _run
from topics.representation import Representation
from trainer.backlog import Backlog
from trainer.basis import ANCHORS, Basis, adopt, rotation_onto
from trainer.batch import build_batch
from trainer.entities import Entities
from trainer.representation import Representations
from trainer.slots import plan_slots
from trainer.step import Learner, row_layout
from trainer.sweep import RefreshSweep

CONFIG = make_config()
PLAN = plan_slots(CONFIG)
F32 = np.float32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddingStore]:
    with EmbeddingStore.open(
        tmp_path, row_layout(CONFIG), cache_rows_max=4096, owner="test"
    ) as opened:
        yield opened


def _vector(user: str, *numbers: float) -> Representation:
    return Representation(
        kind="user",
        id=user,
        vector=np.asarray(numbers, F32),
        version=1,
        step=1,
        event_ms=0,
        produced_ms=0,
    )


def test_what_changed_most_for_its_traffic_goes_first(store: EmbeddingStore) -> None:
    backlog = Backlog(store, vectors_max=2)
    start = [_vector(u, 1.0, 0.0) for u in ("calm", "busy", "moved", "idle")]
    assert len(backlog.choose(start, {b"user:" + v.id.encode() for v in start})) == 4, "forced"
    backlog.note([b"user:busy"] * 50 + [b"user:moved"] * 2 + [b"user:calm"] * 2)
    now = [
        _vector("calm", 1.0, 0.01),
        _vector("busy", 1.0, 0.1),
        _vector("moved", 0.0, 1.0),
        _vector("idle", 1.0, 0.0),
    ]
    assert [v.id for v in backlog.choose(now, set())] == ["busy", "moved"]
    backlog.note([b"user:calm"])
    assert [v.id for v in backlog.choose(now, set())] == ["calm", "busy"], "these are readers' now"
    new = _vector("stranger", 0.1, 0.1)
    assert new in backlog.choose([*now, new], set()), "readers have nothing of it"
    backlog.stage()
    store.commit()
    again = Backlog(store, vectors_max=2)
    keys = {b"user:%d" % n for n in range(20)} | {b"user:idle"}
    backlog.note([b"user:7"] * 3)
    again.note([b"user:7"] * 3)
    assert again.candidates(keys, set()) == backlog.candidates(keys, set())
    assert b"user:7" in again.candidates(keys, set())[0]
    assert len(again.candidates(keys, set())[0]) == 8


def _learnt(store: EmbeddingStore) -> Representations:
    learner = Learner(PLAN, CONFIG, store)
    representations = Representations(store, learner, CONFIG.publish)
    batch = build_batch(make_samples(150), PLAN)
    result = learner.step(batch, now_ms=1)
    representations.observe(batch, result.cross, np.ones(len(batch), bool), step=0)
    representations.stage()
    store.commit()
    return representations


def test_the_sweep_comes_by_everything_in_its_time_also_after_a_restart(
    store: EmbeddingStore,
) -> None:
    _learnt(store)
    every = {key for key, _ in store.scan("entity")}
    entities = Entities(store, 32)
    sweep = RefreshSweep(store, entities, 1000, by_count=False)
    assert sweep.due(5_000) == []
    taken = [key for key, _ in sweep.due(5_250)]
    assert abs(len(taken) - len(every) / 4) <= 1, "a quarter of the time, a quarter of them"
    sweep.stage()
    store.commit()
    sweep = RefreshSweep(store, entities, 1000, by_count=False)
    taken += [key for key, _ in sweep.due(5_700)]
    taken += [key for key, _ in sweep.due(6_000)]
    assert sorted(taken) == sorted(every), "each once in the first walk"
    assert {key for key, _ in sweep.due(6_999)} | {key for key, _ in sweep.due(7_000)} == every


def test_no_vector_of_any_kind_grows_older_than_the_sweep_allows(store: EmbeddingStore) -> None:
    """Untouched ones too; with new entities between, up to twice as old."""
    age_ms, every_ms = 1000, 50
    config = make_config(publish={"age_max": "1s"})
    learner = Learner(PLAN, config, store)
    representations = Representations(store, learner, config.publish)
    newest: dict[tuple[str, bytes], int] = {}
    oldest = {"growing": 0, "settling": 0, "as many": 0}
    for number, now_ms in enumerate(range(0, 6000, every_ms)):
        phase = list(oldest)[min(now_ms // 2000, 2)]
        if phase == "growing" and number % 4 == 0:
            batch = build_batch(make_samples(25, seed=number), PLAN)
            batch.users[:] = [b"%d" % (1000 - number) + user for user in batch.users]
            result = learner.step(batch, now_ms=1)
            representations.observe(batch, result.cross, np.ones(len(batch), bool), step=0)
        for topic, key, _, _ in representations.cut(number + 1, 1, now_ms).records:
            newest[topic, key] = now_ms
        oldest[phase] = max(oldest[phase], now_ms - min(newest.values()))
        representations.stage()
        store.commit()
    assert {topic.rpartition(".")[2] for topic, _ in newest} == {"user", "item", "cross"}
    assert 0 < oldest["as many"] <= age_ms + every_ms
    assert max(oldest.values()) <= 2 * age_ms + every_ms


@pytest.mark.slow
def test_a_budget_and_a_sweep_change_no_byte_after_a_crash_and_leave_nobody_out(
    tmp_path: Path,
) -> None:
    config = make_config(
        publish={"vectors_max": 15, "age_max": "90s", "basis": "anchored"},
        trainer={"cut_by": "count", "batch_samples_max": 16, "commit_every_steps": 2},
    )
    file = write_samples(make_samples(130), tmp_path / "samples.jsonl")
    whole, crashed = VersionLog(), VersionLog()
    expected = _run(tmp_path / "whole", config, file, whole)
    for run, crash_at in enumerate((70, None)):
        found = _run(tmp_path / "crashed", config, file, crashed, crash_at, run)
    assert found == expected and crashed.newest == whole.newest
    counts = [sum(m.counts.values()) for m in whole.manifests.values()]
    assert min(counts) <= 15 < max(counts), "few per version, all of them when the sweep comes by"
    published = {key.decode() for topic, key in whole.newest if topic.endswith(".user")}
    assert published >= {s.user_id for s in make_samples(130)[:32]}, "the sweep came by"


def test_the_rotation_that_was_planted_is_found() -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(300, 16)).astype(F32)
    planted = np.linalg.qr(random.normal(size=(16, 16)))[0].astype(F32)
    found = rotation_onto(vectors, (vectors @ planted).astype(F32))
    np.testing.assert_allclose(found, planted, atol=1e-5)
    noisy = vectors @ planted + 0.3 * random.normal(size=vectors.shape)
    found = rotation_onto(vectors, noisy.astype(F32))
    np.testing.assert_allclose(found @ found.T, np.eye(16), atol=1e-5)
    assert np.abs(found - planted).max() < 0.1


def test_an_anchored_basis_stays_while_the_models_turns_and_can_be_adopted(
    store: EmbeddingStore,
) -> None:
    random = np.random.default_rng(2)
    keys = [b"user:%d" % n for n in range(2 * ANCHORS)]
    truth = dict(zip(keys, random.normal(size=(len(keys), 8)).astype(F32), strict=True))
    turns = [np.linalg.qr(random.normal(size=(8, 8)))[0].astype(F32) for _ in range(3)]

    def shown(basis: Basis, turn: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        def compute(asked):  # type: ignore[no-untyped-def]
            known = [key for key in asked if key in truth]
            found = [truth[k] @ turn for k in known]
            return known, np.stack(found) if found else np.zeros((0, 0), F32)

        basis.fit("user", keys, compute)
        return basis.turned("user", compute(keys)[1])

    basis = Basis(store)
    first = shown(basis, turns[0])
    np.testing.assert_allclose(shown(basis, turns[1]), first, atol=1e-4)
    basis.stage()
    store.commit()
    np.testing.assert_allclose(shown(Basis(store), turns[2]), first, atol=1e-4)
    for key in keys[:ANCHORS]:
        del truth[key]
    keys = keys[ANCHORS:]
    np.testing.assert_allclose(shown(Basis(store), turns[1]), first[ANCHORS:], atol=1e-3)
    store.delete("basis", b"user")
    adopt(store, {"user": dict(zip(keys, first[ANCHORS:], strict=True))})
    np.testing.assert_allclose(shown(Basis(store), turns[2]), first[ANCHORS:], atol=1e-4)

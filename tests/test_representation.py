"""UR, IR and aggregated CR: from committed state, decayed, counted once, in a fixed order."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from embedding_store.store import EmbeddingStore
from tests.sample_stream import START_MS, make_config, make_samples
from topics.representation import decode
from trainer.batch import build_batch
from trainer.entities import Entities
from trainer.packed import PackedRows
from trainer.representation import Representations, normalise
from trainer.slots import plan_slots
from trainer.step import Learner, row_layout
from trainer.tensors import batch_tensors

CONFIG = make_config()
PLAN = plan_slots(CONFIG)
HALF_LIFE_MS = CONFIG.publish.cross_half_life


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with EmbeddingStore.open(
        tmp_path, row_layout(CONFIG), cache_rows_max=4096, owner="test"
    ) as opened:
        yield opened


def _decoded(records: list) -> dict:  # type: ignore[type-arg]
    found = {}
    for topic, key, value, headers in records:
        kind = topic.removeprefix("representations.")
        found[kind, key.decode()] = decode(key, value, headers, kind=kind)
    return found


def test_tower_vectors_are_those_of_the_present_state(store: EmbeddingStore) -> None:
    learner = Learner(PLAN, CONFIG, store)
    representations = Representations(store, learner, CONFIG.publish)
    samples = make_samples(40)
    batch = build_batch(samples, PLAN)
    result = learner.step(batch, now_ms=1)
    representations.observe(batch, result.cross, np.ones(len(samples), bool), step=0)
    found = _decoded(representations.cut(3, 1, 0).records)
    # the whole forward pass with the state after the step gives the same UR and IR
    newest = list({s.user_id: s for s in samples}.values())
    after = build_batch(newest, PLAN)
    keys = np.concatenate([p.keys for p in after.parts.values()])
    rows = {"shared": torch.from_numpy(store.peek(keys, "shared")[0])}
    learner.model.tap.seen = {}
    with torch.no_grad():
        tensors = batch_tensors(after, np.arange(keys.size), learner.moments, torch.device("cpu"))
        learner.model(tensors, rows)
    ur = learner.model.tap.seen["ur"].numpy()
    for b, sample in enumerate(newest):
        vector = found["user", sample.user_id].vector
        np.testing.assert_allclose(vector, ur[b], rtol=1e-4, atol=1e-5)
    assert found["user", newest[0].user_id].version == 3
    assert len(found) == 2 * (len({s.user_id for s in samples}) + len({s.item_id for s in samples}))


def test_a_version_holds_the_touched_only_and_in_order(store: EmbeddingStore) -> None:
    learner = Learner(PLAN, CONFIG, store)
    representations = Representations(store, learner, CONFIG.publish)
    for samples in (make_samples(60), make_samples(60)[:2]):
        batch = build_batch(samples, PLAN)
        result = learner.step(batch, now_ms=1)
        representations.observe(batch, result.cross, np.ones(len(samples), bool), step=0)
        cut = representations.cut(1, 1, 0)
        users = [key.decode() for topic, key, _, _ in cut.records if topic.endswith(".user")]
        assert users == sorted({s.user_id for s in samples})
        assert sum(cut.counts.values()) == len(cut.records)
    assert not representations.any_touched


@pytest.mark.parametrize("sizes", [[1] * 8, [8], [3, 5]])
def test_cr_decays_and_does_not_depend_on_the_order_of_events(
    store: EmbeddingStore, sizes: list[int]
) -> None:
    """Against the sum written out, for events of two entities in batches of any size."""
    draw = np.random.default_rng(0)
    times = np.asarray([0, 500, 1000, 4000, 4000, 9000, 100, 100])
    owners = np.asarray([0, 0, 0, 0, 1, 1, 1, 0])
    crs = draw.normal(size=(8, 32)).astype(np.float32)
    packed = PackedRows(build_batch(make_samples(8), PLAN).parts["user"])
    for order in (np.arange(8), np.asarray([3, 7, 1, 0, 5, 2, 6, 4])):
        entities = Entities(store, 32)
        for rows in np.split(order, np.cumsum(sizes)[:-1]):
            numbers = entities.open([(b"user:a", b"user:b")[o] for o in owners[rows]])
            entities.observe(
                numbers,
                event_ms=times[rows],
                newest_ms=times[rows],
                produced_ms=times[rows],
                packed=packed,
                first=np.ones(len(rows), bool),
                cross=crs[rows],
                step=0,
                half_life_ms=1000,
            )
        for owner, key in enumerate((b"user:a", b"user:b")):
            mine, number = owners == owner, entities.open([key])[0]
            weights = 2.0 ** (-(times[mine].max() - times[mine]) / 1000)
            expected = (crs[mine] * weights[:, None]).sum(0)
            np.testing.assert_allclose(entities.cross[number], expected, rtol=1e-4, atol=1e-5)
            assert entities.head["cross_count"][number] == mine.sum()
            assert entities.head["cross_last_ms"][number] == times[mine].max()


def test_cr_is_counted_once_per_impression_and_features_at_first_sight(
    store: EmbeddingStore,
) -> None:
    learner = Learner(PLAN, CONFIG, store)
    representations = Representations(store, learner, CONFIG.publish)
    early = next(s for s in make_samples(1, correct=True, seed=3) if s.state == "early")
    correction = msgspec.structs.replace(
        early,
        state="correction",
        labels={"click": 1},
        delays_ms={"click": 50},
        produced_ms=START_MS,
    )
    for sample, first in ((early, True), (correction, False)):
        batch = build_batch([sample], PLAN)
        representations.observe(batch, np.ones((1, 32), np.float32), np.asarray([first]), step=0)
    found = _decoded(representations.cut(1, 1, 0).records)
    user, cross = found["user", early.user_id], found["cross", f"user:{early.user_id}"]
    assert user.event_ms == early.event_ms + 50  # the conversion is in the user's vector
    assert cross.event_ms == early.event_ms  # and not in the aggregate, which counts impressions
    number = representations._entities.open([f"user:{early.user_id}".encode()])[0]
    assert representations._entities.head["cross_count"][number] == 1


def test_what_is_published_of_cr_is_normalised() -> None:
    vectors = np.asarray([[1, 2, 3, 4], [10, 20, 30, 40], [0, 0, 0, 0]], np.float32)
    published = normalise(vectors)
    np.testing.assert_allclose(published[0], published[1], rtol=1e-4)
    np.testing.assert_allclose(
        published, torch.nn.functional.layer_norm(torch.from_numpy(vectors), (4,)), rtol=1e-5
    )


def test_a_version_holds_the_normalised_sum_of_the_predictions_activations(
    store: EmbeddingStore,
) -> None:
    """CR is of the state that predicted: an aggregate with activations of after the update would
    hold the impression's own label."""
    learner = Learner(PLAN, CONFIG, store)
    representations = Representations(store, learner, CONFIG.publish)
    learner.step(build_batch(make_samples(60), PLAN), now_ms=1)
    batch = build_batch(make_samples(1, seed=9), PLAN)
    keys = np.concatenate([part.keys for part in batch.parts.values()])
    rows = {"shared": torch.from_numpy(store.peek(keys, "shared")[0])}
    tensors = batch_tensors(batch, np.arange(keys.size), learner.moments, torch.device("cpu"))
    with torch.no_grad():
        before = learner.model(tensors, rows).cross.numpy()
    result = learner.step(batch, now_ms=2)
    assert result.cross is not None
    representations.observe(batch, result.cross, np.ones(1, bool), step=1)
    found = _decoded(representations.cut(5, 2, 0).records)
    user = batch.users[0].decode()
    np.testing.assert_allclose(
        found["cross", f"user:{user}"].vector, normalise(before)[0], rtol=1e-4, atol=1e-5
    )
    representations.stage()
    representations.touch_everything()
    found = _decoded(representations.cut(9, 40, 0).records)
    assert (found["user", user].version, found["user", user].step) == (9, 40)
    said = found["cross", f"user:{user}"]
    assert (said.version, said.step) == (9, 1), "CR is of the model that predicted"


def test_older_features_do_not_replace_newer_ones(store: EmbeddingStore) -> None:
    learner = Learner(PLAN, CONFIG, store)
    representations = Representations(store, learner, CONFIG.publish)
    new, old = (
        msgspec.structs.replace(make_samples(1)[0], event_ms=START_MS + t, features={"age": age})
        for t, age in ((10, 50), (5, 20))
    )
    for sample in (new, old):
        representations.observe(build_batch([sample], PLAN), None, np.ones(1, bool), step=0)
    entities = representations._entities
    number = int(entities.open([f"user:{new.user_id}".encode()])[0])
    assert entities.head["features_event_ms"][number] == START_MS + 10
    newer = PackedRows(build_batch([new], PLAN).parts["user"]).row(0)
    assert entities.packed(np.asarray([number])) == [newer]


def test_entities_come_back_from_the_disk_as_they_were(store: EmbeddingStore) -> None:
    learner = Learner(PLAN, CONFIG, store)
    representations = Representations(store, learner, CONFIG.publish)
    batch = build_batch(make_samples(50), PLAN)
    result = learner.step(batch, now_ms=1)
    representations.observe(batch, result.cross, np.ones(50, bool), step=3)
    representations.stage()
    before, after = representations._entities, Entities(store, learner.model.cross_dim)
    keys = [b"user:" + user for user in batch.users]
    old, new = before.open(keys), after.open(keys)
    np.testing.assert_array_equal(before.head[old], after.head[new])
    np.testing.assert_array_equal(before.cross[old], after.cross[new])
    assert after.head["cross_step"][new].tolist() == [3] * 50
    assert before.packed(old) == after.packed(new)
    assert before.packed(old)[0]


def test_touched_entities_survive_a_restart(store: EmbeddingStore) -> None:
    learner = Learner(PLAN, CONFIG, store)
    representations = Representations(store, learner, CONFIG.publish)
    batch = build_batch(make_samples(10), PLAN)
    result = learner.step(batch, now_ms=1)
    representations.observe(batch, result.cross, np.ones(10, bool), step=0)
    representations.stage()
    again = Representations(store, learner, CONFIG.publish)
    left, right = again.cut(1, 1, 0).records, representations.cut(1, 1, 0).records
    assert left == right and left

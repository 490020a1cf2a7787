"""Running rates: exact counts of matured labels per value, read before they are written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from embedding_store.keys import row_keys
from embedding_store.store import EmbeddingStore
from tests.sample_stream import make_config, make_samples
from topics.sample import Sample
from trainer.batch import FINAL, build_batch
from trainer.durable import Progress, recover_state, stage_state
from trainer.loop import Loop
from trainer.parts.rates import RATES
from trainer.portion import Portion
from trainer.slots import plan_slots
from trainer.step import Learner, row_layout

CONFIG = make_config(
    technique={"running_rates": True}, model={"name": "lr"}, join={"policy": "correct"}
)
PLAN = plan_slots(CONFIG)
SAMPLES = make_samples(300, correct=True)


def _open(path: Path) -> EmbeddingStore:
    return EmbeddingStore.open(path, row_layout(CONFIG), cache_rows_max=4096, owner="test")


class _Portions:
    """The samples, 50 at a time."""

    def __init__(self, samples: list[Sample]) -> None:
        self._left = [samples[i : i + 50] for i in range(0, len(samples), 50)]

    @property
    def at_end(self) -> bool:
        return not self._left

    def take(self, stopping: object) -> Portion | None:
        if not self._left:
            return None
        batch = build_batch(self._left.pop(0), PLAN)
        return Portion(batch, np.full(len(batch), -1), {"samples": {0: 1}}, -1, [])

    def take_ready(self, stopping: object) -> None:
        return None

    def committed(self, offsets: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("policy", ["wait", "correct"])
def test_counts_are_those_of_final_samples_and_of_what_was_shown(
    tmp_path: Path, policy: str
) -> None:
    config = CONFIG.model_copy(update={"join": CONFIG.join.model_copy(update={"policy": policy})})
    samples = [s for s in SAMPLES if policy == "correct" or s.state == "final"]
    finals = [s for s in samples if s.state == "final"]
    with _open(tmp_path) as store:
        loop = Loop(config, store, sink=None)
        loop.run(_Portions(samples))
        for slot, read in (("item_id", lambda s: s.item_id), ("os", lambda s: s.features["os"])):
            shown, clicks = Counter[str](), Counter[str]()
            for sample in finals:
                if slot == "item_id" or "os" in sample.features:
                    shown[read(sample)] += 1
                    clicks[read(sample)] += sample.labels["click"]
            values = sorted(shown)
            found, _ = store.peek(row_keys(slot, values), RATES)
            t = config.tasks.index("click")
            np.testing.assert_array_equal(found[:, 0], [shown[v] for v in values])
            np.testing.assert_array_equal(found[:, 1 + t], [clicks[v] for v in values])
        buys = sum(s.labels["buy"] for s in finals)
        totals = loop.learner.model.state_dict()["rates.totals"].tolist()
        assert totals[0] == len(finals) and totals[1 + config.tasks.index("buy")] == buys


def test_what_a_final_says_is_read_by_later_impressions_alone(tmp_path: Path) -> None:
    finals = [s for s in SAMPLES if s.state == "final"][:40]
    early = [s for s in SAMPLES if s.state == "early"][:40]
    turned = [msgspec.structs.replace(s, labels=dict.fromkeys(s.labels, 1)) for s in finals]
    said = []
    for name, counted in (("a", finals), ("b", turned)):
        with _open(tmp_path / name) as store:
            learner = Learner(PLAN, CONFIG, store)
            first = learner.predict(build_batch(early, PLAN))
            learner.count(build_batch(counted, PLAN), now_ms=1)
            said.append((first, learner.predict(build_batch(early, PLAN))))
    (before, after), (same, turned_after) = said
    np.testing.assert_array_equal(before, same)
    assert (turned_after > after + 1).all()


def test_a_new_value_starts_at_the_rate_of_all(tmp_path: Path) -> None:
    finals = [s for s in SAMPLES if s.state == "final"]
    new = msgspec.structs.replace(finals[0], user_id="new", item_id="new", domain="d", features={})
    with _open(tmp_path) as store:
        learner = Learner(PLAN, CONFIG, store)
        learner.count(build_batch(finals, PLAN), now_ms=1)
        said = 1 / (1 + np.exp(-learner.predict(build_batch([new], PLAN))[0]))
        rates = [np.mean([s.labels[task] for s in finals]) for task in CONFIG.tasks]
        np.testing.assert_allclose(said, rates, atol=0.03)


def test_rates_are_in_the_commit(tmp_path: Path) -> None:
    batch = build_batch(SAMPLES, PLAN)
    with _open(tmp_path) as store:
        learner = Learner(PLAN, CONFIG, store)
        recover_state(store, learner, PLAN, CONFIG)
        learner.count(batch.take(np.flatnonzero(batch.state == FINAL)), now_ms=1)
        stage_state(store, learner, Progress())
        store.commit()
        before = learner.predict(batch)
    with _open(tmp_path) as store:
        learner = Learner(PLAN, CONFIG, store)
        recover_state(store, learner, PLAN, CONFIG)
        np.testing.assert_array_equal(learner.predict(batch), before)

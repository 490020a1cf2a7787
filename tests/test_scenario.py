"""The example downstream trainer: it serves before it learns, and vectors help where they tell."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from confluent_kafka import Producer

from downstream.reader import RepresentationReader
from downstream.scenario.fields import Fields, pack
from downstream.scenario.learner import ScenarioLearner, area_under_curve
from downstream.scenario.model import Shape, scenario_model
from downstream.scenario.stream import ScenarioStream
from downstream.table import VectorTable
from downstream.transfer import TransferName
from runtime.config_file import write_config
from settings.config import Config, KafkaConfig, KindConfig, SlotConfig
from tests.publishing import DIM, manifest, records, representation
from tests.readable import Publisher
from tests.test_transfer import Held
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.impression import Impression, encode_impression
from topics.names import IMPRESSIONS, SAMPLES
from topics.representation import Representation
from topics.sample import Sample, encode_sample

SLOTS = {
    "city": SlotConfig(side="user"),
    "tags": SlotConfig(side="item", type="multi"),
    "price": SlotConfig(side="item", type="numeric"),
}


def config_of(prefix: str = "scenario") -> Config:
    return Config(
        kafka=KafkaConfig(topic_prefix=prefix), slots=SLOTS, kinds={"click": KindConfig()}
    )


def impression(
    n: int, *, user: str = "u1", event_ms: int = 1_000, domain: str = "feed"
) -> Impression:
    return Impression(
        impression_id=f"i{n}",
        event_ms=event_ms,
        user_id=user,
        item_id=f"item{n % 7}",
        domain=domain,
        features={"city": "x", "tags": ["a", "b"], "price": 3.5},
    )


def learner_of(
    config: Config, held: Held, transfer: TransferName = "adapter", *, dim: int = DIM
) -> ScenarioLearner:
    torch.manual_seed(0)
    fields = Fields(config, buckets=512)
    model = scenario_model(transfer, Shape(len(fields), fields.buckets, dim=4), [dim])
    return ScenarioLearner(model, fields, held, reads="user", dims=[dim], task="click")


def test_every_slot_is_a_field_and_a_missing_one_has_no_code() -> None:
    fields = Fields(config_of())
    assert fields.names == ("user_id", "item_id", "domain", "city", "price", "tags")
    whole = fields.codes(impression(1))
    assert [len(codes) for codes in whole] == [1, 1, 1, 1, 1, 2]
    bare = Impression(
        impression_id="i", event_ms=1, user_id="u", item_id="i", domain="feed", features={}
    )
    assert [len(codes) for codes in fields.codes(bare)] == [1, 1, 1, 0, 0, 0]
    rows = pack([whole, fields.codes(bare)])
    assert rows.offsets.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 10, 10, 10]


@pytest.mark.parametrize("price", [float("nan"), float("inf"), True, {"a": 1}, [1.0, 2.0]])
def test_a_value_of_no_known_type_is_missing(price: object) -> None:
    bad = impression(1)
    bad.features["price"] = price
    assert Fields(config_of()).codes(bad)[4] == []


def test_area_under_curve_counts_ties_half() -> None:
    scores = np.asarray([0.1, 0.5, 0.5, 0.9])
    assert area_under_curve(scores, np.asarray([0, 0, 1, 1])) == pytest.approx(3.5 / 4)
    assert area_under_curve(scores, np.asarray([1, 1, 1, 1])) is None


def test_it_learns_with_the_vector_that_was_served() -> None:
    """A version that shows between impression and label holds that label: it must not be read."""
    config = config_of()
    table = VectorTable("user")
    table.apply([representation("u1", 1)])
    learner = learner_of(config, Held(table))
    learner.serve([impression(1, event_ms=5_000)])
    table.apply([representation("u1", 2)])
    kept = learner._pending["i1"].vector
    assert kept.tolist() == [1.0] * DIM
    assert learner.learn({"i1": 1, "never served": 0}) == 1
    assert learner.learn({"i1": 1}) == 0, "each label once"
    assert learner.report().samples == 1


def test_a_scenario_may_be_scored_on_more_than_it_learns_from() -> None:
    first, second = (learner_of(config_of(), Held(VectorTable("user"))) for _ in range(2))
    for learner in (first, second):
        learner.serve([impression(n) for n in range(8)])
    labels = {f"i{n}": n % 2 for n in range(8)}
    assert first.learn(labels, taught={"i3"}) == 8
    assert second.learn({"i3": 1}) == 1
    assert (first.report().samples, second.report().samples) == (8, 1)
    again = [impression(100), impression(101)]
    assert first.serve(again).tolist() == second.serve(again).tolist(), "one label taught both"


def test_the_served_logit_is_what_is_scored() -> None:
    learner = learner_of(config_of(), Held(VectorTable("user")))
    served = learner.serve([impression(n) for n in range(40)])
    learner.learn({f"i{n}": n % 2 for n in range(40)})
    assert learner._logits == pytest.approx(served.tolist())
    again = learner.serve([impression(100)])
    assert again[0] != pytest.approx(served[0], abs=1e-6), "it has learnt"
    assert learner.report().missing_share == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("transfer", ["sum", "adapter"])
def test_a_telling_vector_beats_none(transfer: TransferName) -> None:
    """Users' taste is in the published vector and nowhere else; every user comes but twice."""
    random = np.random.default_rng(5)
    taste = random.choice([-1.0, 1.0], 600)
    table = VectorTable("user")
    noise = random.normal(size=(600, DIM))
    vectors = (noise + taste[:, None] * np.asarray([1.5, 0, -1.5, 0])).astype(np.float32)
    table.apply(
        Representation(
            kind="user", id=f"u{u}", vector=vectors[u], version=1, step=1, event_ms=0, produced_ms=0
        )
        for u in range(600)
    )
    aucs = {}
    for name in ("none", transfer):
        learner = learner_of(config_of(), Held(table), name)
        for start in range(0, 1_200, 40):
            batch = [impression(n, user=f"u{(n * 7) % 600}") for n in range(start, start + 40)]
            learner.serve(batch)
            learner.learn({i.impression_id: int(taste[int(i.user_id[1:])] > 0) for i in batch})
        aucs[name] = learner.report().auc
    assert aucs[transfer] > aucs["none"] + 0.1, aucs


@pytest.mark.kafka
@pytest.mark.slow
def test_the_stream_serves_then_learns(kafka: str, prefix: str) -> None:
    config = config_of(prefix)
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{prefix}-trainer")
    publisher.publish(1, records([representation("u1", 1, event_ms=500)]), manifest(1))
    producer = Producer(producer_settings(config, kafka))
    with RepresentationReader(config, kafka, ("user",)) as reader:
        learner = learner_of(config, Held(reader._fold.tables["user"]))
        stream = ScenarioStream(config, kafka, learner, domain="feed", task="click")
        shown = [impression(1), impression(2, domain="elsewhere"), impression(3, user="u2")]
        for event in shown:
            producer.produce(config.topic(IMPRESSIONS), encode_impression(event))
        producer.produce(config.topic(IMPRESSIONS), b"{no event")
        producer.flush()
        _run_until(stream, lambda: len(learner._pending) == 2)
        for event in shown:
            producer.produce(config.topic(SAMPLES), _final(event))
        producer.flush()
        _run_until(stream, lambda: learner.report().samples == 2)
        stream.close()
        report = learner.report()
    publisher.close()
    assert (report.samples, report.positives, report.missing_share) == (2, 2, 0.5)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_scenario_of_its_own_process_learns_from_the_topics(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    config = config_of(prefix)
    ensure_topics(config, kafka)
    file = tmp_path / "c.toml"
    write_config(config, file, comment="the stack")
    publisher = Publisher(config, kafka, f"{prefix}-trainer")
    publisher.publish(1, records([representation("u1", 1, event_ms=500)]), manifest(1))
    publisher.close()
    command = [sys.executable, "-m", "downstream.scenario", "--config", str(file)]
    command += ["--bootstrap", kafka, "--domain", "feed", "--transfer", "sum"]
    with (tmp_path / "said").open("w+b") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said)
        try:
            ends = time.monotonic() + 200
            while b"scenario_ready" not in (tmp_path / "said").read_bytes():
                assert time.monotonic() < ends and process.poll() is None
                time.sleep(0.1)
            producer = Producer(producer_settings(config, kafka))
            shown = [impression(1), impression(2, domain="elsewhere"), impression(3, user="u2")]
            for event in shown:
                producer.produce(config.topic(IMPRESSIONS), encode_impression(event))
            # again and again: one that overtook its impression is for nothing
            while b'"samples": 2' not in (tmp_path / "said").read_bytes():
                assert time.monotonic() < ends and process.poll() is None
                producer.flush()
                time.sleep(0.5)
                for event in shown:
                    producer.produce(config.topic(SAMPLES), _final(event))
            producer.flush()
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=120)
    report = json.loads(out)
    assert process.returncode == 0
    assert (report["domain"], report["transfer"]) == ("feed", "sum")
    assert (report["samples"], report["positives"], report["missing_share"]) == (2, 2, 0.5)
    assert report["from_future"] == 0


def _final(event: Impression) -> bytes:
    """Its sample, with a click."""
    final = Sample(
        impression_id=event.impression_id,
        user_id=event.user_id,
        item_id=event.item_id,
        domain=event.domain,
        event_ms=event.event_ms,
        produced_ms=1,
        features=event.features,
        labels={"click": 1},
        delays_ms={},
        values={},
        keep_rate=1.0,
        state="final",
        elapsed_ms=0,
        revision=0,
    )
    return encode_sample(final)


def _run_until(stream: ScenarioStream, reached: object) -> None:
    assert callable(reached)
    ends = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < ends, "the records did not come"
        stream.step(0.2)

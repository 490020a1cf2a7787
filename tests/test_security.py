"""A real broker with TLS, SCRAM and ACLs: each process gets by with its own rights, is refused the
rest with a reason, and no secret is found anywhere. And what our own code may not do."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from downstream.reader import RepresentationReader
from runtime.producing import EventProducer
from settings.config import Config
from settings.errors import ConfigError
from settings.load import load_config
from stream.plan import client_properties
from tests.publishing import manifest, records, representation
from tests.readable import Publisher, await_readable
from tests.sample_log import samples
from tests.secured_broker import SecuredBroker
from topics.access import rights
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.errors import TopicUnauthorized, TopicUnavailable
from topics.sample import encode_sample
from topics.scan import read_to_end
from trainer.source import KafkaSource

ROOT = Path(__file__).parents[1]
PACKAGES = ("settings", "topics", "stream", "embedding_store", "trainer", "downstream", "runtime")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    """Its topics are there, and every process has the rights of `topics.access`."""
    with SecuredBroker(tmp_path_factory.mktemp("secured")) as broker:
        broker.grant(rights(config_of(broker, "operator")))
        ensure_topics(config_of(broker, "operator"), broker.bootstrap)
        yield broker


def config_of(broker: SecuredBroker, user: str, **extra: str) -> Config:
    """The stack's config as the process `user` has it."""
    return Config.model_validate(
        {
            "kafka": {"extra": {**broker.extra(user), **extra}, "topic_prefix": "closed"},
            "kinds": {"click": {}, "buy": {}},
        }
    )


@pytest.mark.kafka
@pytest.mark.slow
def test_each_process_gets_by_with_its_own_rights(secured: SecuredBroker) -> None:
    at = secured.bootstrap
    producer = EventProducer(config_of(secured, "producer"), at)
    assert producer.send("impressions", b'{"user_id": "u", "item_id": "i"}')
    producer.flush(30)
    join = config_of(secured, "join")
    assert [m.value() for _, m in read_to_end(join, at, ["impressions"])]
    sink = Producer(producer_settings(join, at, transactional_id="closed-join-0"))
    sink.init_transactions(60)
    sink.begin_transaction()
    sample = next(iter(samples(1)))
    sink.produce(join.topic("samples"), encode_sample(sample), b"k")
    sink.commit_transaction(60)
    trainer = config_of(secured, "trainer")
    await_readable(trainer, at, ["samples"])
    ensure_topics(trainer, at)  # it may look at the layout, and creates nothing
    source = KafkaSource(trainer, at, {}, until_end=True)
    found: list[Any] = []
    while not source.at_end:
        found += source.poll(10, 0.2)
    source.committed({"samples": {0: 1}})
    source.close()
    assert [record.sample for record in found] == [sample]
    publisher = Publisher(trainer, at, "closed-trainer")
    publisher.publish(1, records([representation("u", 1)]), manifest(1))
    publisher.close()
    with RepresentationReader(config_of(secured, "reader"), at) as reader:
        vector = reader.get("user", "u")
    assert vector is not None and vector.version == 1


REFUSED: dict[str, tuple[str, Callable[[Config, str], object], str]] = {
    "the trainer reads raw events": (
        "trainer",
        lambda config, at: list(read_to_end(config, at, ["impressions"])),
        "closed.impressions",
    ),
    "the reader reads samples": (
        "reader",
        lambda config, at: KafkaSource(config, at, {}).poll(1, 10),
        "closed.samples",
    ),
    "the reader publishes": (
        "reader",
        lambda config, at: Publisher(config, at, "closed-trainer"),
        "transactional id",
    ),
    "the join publishes": (
        "join",
        lambda config, at: Publisher(config, at, "closed-join-x").publish(
            9, records([representation("u", 9)]), manifest(9)
        ),
        "closed.",  # its manifests, or where there are none yet, a vector
    ),
    "the trainer creates topics": (
        "trainer",
        lambda config, at: ensure_topics(
            config.model_copy(
                update={"kafka": config.kafka.model_copy(update={"topic_prefix": "another"})}
            ),
            at,
        ),
        "another.",
    ),
}


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_granted_is_refused_by_name(secured: SecuredBroker, what: str) -> None:
    user, attempt, named = REFUSED[what]
    read_to_end(config_of(secured, "operator"), secured.bootstrap, ["samples"])
    with pytest.raises(TopicUnauthorized) as refused:
        attempt(config_of(secured, user), secured.bootstrap)
    said = str(refused.value)
    assert named in said and f"User:{user}" in said and "headwater acls" in said, said


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["sasl.username", "ssl.ca.location"])
def test_who_is_not_let_in_hears_why(secured: SecuredBroker, wrong: str, tmp_path: Path) -> None:
    value = "nobody"
    if wrong == "ssl.ca.location":
        another = SecuredBroker(tmp_path)
        another._make_certificate()
        value = str(another.authority)
    config = config_of(secured, "trainer", **{wrong: value})
    for seconds in (5, 20, 60):  # on a machine that is very busy, nobody answers in the first
        with pytest.raises((TopicUnauthorized, TopicUnavailable)) as refused:
            ensure_topics(config, secured.bootstrap, timeout_seconds=seconds)
        if refused.type is TopicUnauthorized:
            break
    said = str(refused.value)
    assert "was not let in; check kafka.extra" in said and secured.passwords["trainer"] not in said


def test_a_secret_in_a_config_is_refused_and_never_repeated(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[kafka.extra]\n"sasl.username" = "u"\n"sasl.password" = "hunter2"\n')
    with pytest.raises(ConfigError, match=r"sasl\.password: a secret does not belong") as refused:
        load_config(file, env={})
    assert "hunter2" not in str(refused.value)


def test_a_secret_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "word").write_text("sesame in a file\n")
    monkeypatch.setenv("HW_WORD", "sesame outside")

    def client(reference: str) -> dict[str, Any]:
        extra = {"sasl.username": "u", "sasl.password": reference, "sasl.mechanism": "PLAIN"}
        config = Config.model_validate({"kafka": {"extra": extra}})
        assert "sesame" not in config.model_dump_json()
        assert 'password="sesame' in " ".join(client_properties(config, "b:1").values())
        return producer_settings(config, "b:1")

    assert client(f"file:{tmp_path / 'word'}")["sasl.password"] == "sesame in a file"
    assert client("env:HW_WORD")["sasl.password"] == "sesame outside"
    for missing in (f"file:{tmp_path / 'none'}", "env:HW_NONE"):
        with pytest.raises(ConfigError, match=r"sasl\.password: .*(none|HW_NONE)"):
            client(missing)


def test_what_the_joins_client_does_not_have_is_refused() -> None:
    extra = {"ssl.certificate.location": "/dev/null", "ssl.key.location": "/dev/null"}
    config = Config.model_validate({"kafka": {"extra": extra}})
    with pytest.raises(ConfigError, match=r"ssl\.certificate\.location, ssl\.key\.location"):
        client_properties(config, "b:1")


def test_nothing_is_unpickled() -> None:
    """Neither pickle and its kin, nor what calls them: torch.load, numpy's allow_pickle, eval."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    calls = {"torch.load", "torch.save", "pandas.read_pickle", "yaml.load"}
    bad = []
    for path in (file for name in PACKAGES for file in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            at = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names} & modules
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]} & modules
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                names = {called} & (calls | {"eval", "exec"})
                names |= {k.arg for k in node.keywords if k.arg == "allow_pickle"}
            bad += [f"{at} {name}" for name in sorted(names)]
    assert not bad, "\n".join(bad)

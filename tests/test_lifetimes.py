"""Rows that earn their place and lose it, through the loop and to a reader over a real broker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from embedding_store.keys import row_key
from embedding_store.policies import admission_filter
from embedding_store.store import EmbeddingStore
from settings.config import Config
from settings.load import load_config
from tests.sample_stream import config_toml, make_config, make_samples, write_samples
from tests.test_loop import VersionLog, _run
from tests.test_trainer_stream import _produce
from topics.admin import ensure_topics
from topics.manifest import decode_manifest
from topics.names import MANIFEST
from topics.representation import decode
from topics.scan import read_to_end
from trainer.step import row_layout

ADMISSION = {"policy": "count", "count": 2, "window": "20min", "keys_max": 400}
EXPIRY = {
    "every": "1min",
    "slots": {"user_id": {"ttl": "3min"}, "item_id": {"rows_max": 25}, "tags": {"ttl": "1min"}},
}
SMALL = {"cut_by": "count", "batch_samples_max": 16, "commit_every_steps": 3}


def _state(folder: Path, config: Config) -> dict[str, Any]:
    with EmbeddingStore.open(
        folder,
        row_layout(config),
        cache_rows_max=2048,
        owner="test",
        admission=admission_filter(config.admission),
    ) as store:
        number = store.layout.slot_number
        rows = [(key, header.slot) for key, header, _ in store.rows()]
        return {
            "entities": {key.decode() for key, _ in store.scan("entity")},
            "by_row": {int.from_bytes(k, "big"): v.decode() for k, v in store.scan("entity_row")},
            "users": {key for key, slot in rows if slot == number("user_id")},
            "items": {key for key, slot in rows if slot == number("item_id")},
        }


def _key_of(entity: str) -> int:
    side, _, id_ = entity.partition(":")
    return row_key(f"{side}_id", id_)


def _check_published(
    newest: Mapping[tuple[str, bytes], tuple[bytes | None, Any]], entities: set[str]
) -> int:
    """What has a vector is what has a record; returns how many keys end in a tombstone."""
    for kind, topic in (("user", "representations.user"), ("item", "representations.item")):
        alive = {f"{kind}:{k.decode()}" for (t, k), (v, _) in newest.items() if t == topic and v}
        assert alive == {e for e in entities if e.startswith(kind)}, topic
    crossed = {k.decode() for (t, k), (v, _) in newest.items() if t.endswith("cross") and v}
    assert crossed == entities
    return sum(value is None for value, _ in newest.values())


@pytest.mark.slow
def test_what_expires_is_gone_everywhere_and_a_crash_changes_no_byte(tmp_path: Path) -> None:
    config = make_config(admission=ADMISSION, expiry=EXPIRY, trainer=SMALL)
    samples = make_samples(400)
    file = write_samples(samples, tmp_path / "samples.jsonl")
    whole, crashed = VersionLog(), VersionLog()
    expected = _run(tmp_path / "whole", config, file, whole)
    points, runs = [333, 201, 90], 0
    while (
        digest := _run(
            tmp_path / "crashed", config, file, crashed, points[-1] if points else None, runs
        )
    ) is None:
        runs += 1
        points.pop()
    assert runs == 3 and digest == expected and crashed.newest == whole.newest

    state = _state(tmp_path / "whole", config)
    assert {_key_of(entity) for entity in state["entities"]} == set(state["by_row"])
    assert all(_key_of(entity) == key for key, entity in state["by_row"].items())
    assert state["items"] and state["users"]
    buried = _check_published(whole.newest, state["entities"])
    told = sum(m.counts["tombstones"] for m in whole.manifests.values())
    seen = {f"user:{s.user_id}" for s in samples}
    assert told > buried > 10, "some came back after their tombstone"
    assert len(seen - state["entities"]) > 5


@pytest.mark.slow
def test_an_entity_that_never_earned_a_row_goes_by_its_time_alone(tmp_path: Path) -> None:
    config = make_config(
        admission={"window": "1h", "slots": {"user_id": {"policy": "count", "count": 60}}},
        expiry={"every": "1min", "slots": {"user_id": {"ttl": "3min"}}},
        trainer=SMALL,
    )
    log = VersionLog()
    file = write_samples(make_samples(400), tmp_path / "samples.jsonl")
    assert _run(tmp_path / "store", config, file, log) is not None
    state = _state(tmp_path / "store", config)
    users = {entity for entity in state["entities"] if entity.startswith("user")}
    assert not state["users"] and 0 < len(users) < 60
    assert _check_published(log.newest, state["entities"]) > 10


@pytest.mark.slow
@pytest.mark.kafka
def test_tombstones_reach_readers_through_a_real_broker(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    from downstream.reader import RepresentationReader

    values = tomlkit.parse(config_toml(prefix)).unwrap()
    values |= {"expiry": EXPIRY}
    values["trainer"] |= SMALL
    config_file = tmp_path / "c.toml"
    config_file.write_text(tomlkit.dumps(values), encoding="utf-8")
    config = load_config(config_file, env={}).config
    ensure_topics(config, kafka)
    samples = make_samples(400)
    _produce(kafka, config, samples[:200])
    command = [
        *(sys.executable, "-m", "trainer", "--config", str(config_file), "--bootstrap", kafka),
        *("--store", str(tmp_path / "store"), "--until-end"),
    ]
    assert subprocess.run(command, timeout=200, check=False).returncode == 0
    with RepresentationReader(config, kafka) as early:  # holds vectors that will be taken away
        held = set(early.matrix("user")[0])
        _produce(kafka, config, samples[200:])
        assert subprocess.run(command, timeout=200, check=False).returncode == 0
        state = _state(tmp_path / "store", config)
        entities = state["entities"]
        assert {_key_of(entity) for entity in entities} == state["users"] | state["items"]
        assert len(state["items"]) <= 40 - 5, "rows_max has taken some"
        users = {entity.partition(":")[2] for entity in entities if entity.startswith("user")}
        manifests = [
            decode_manifest(message.value() or b"")
            for _, message in read_to_end(config, kafka, [MANIFEST])
        ]
        assert early.wait_until(manifests[-1].version, 120)
        assert set(early.matrix("user")[0]) == users and held - users
        gone = min(held - users)
        assert early.get("user", gone) is None and early.get("cross", f"user:{gone}") is None
    with RepresentationReader(config, kafka) as late:
        assert set(late.matrix("user")[0]) == users
        assert set(late.matrix("cross")[0]) == entities
    tombstones = 0
    for topic in ("user", "item", "cross"):
        for _, message in read_to_end(config, kafka, [f"representations.{topic}"]):
            if message.value() is None:
                tombstones += 1
                record = decode(message.key(), None, message.headers(), kind=topic)  # type: ignore[arg-type]
                assert record.vector is None and record.version > 0 and record.event_ms > 0
                assert dict(message.headers() or ())["hw_dim"] == b"0"
    assert tombstones == sum(m.counts["tombstones"] for m in manifests) > 0

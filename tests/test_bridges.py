"""Published vectors over a real broker into other stores, by their real libraries.

A library or server that is not installed skips its test and says so; `HEADWATER_TEST_REDIS` and
`HEADWATER_TEST_KCAT` name programs elsewhere than on PATH.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from downstream.pretrained import load_mix_tower, mix_tower, save_mix_tower
from examples.following import Following, Put
from settings.config import Config
from tests.publishing import DIM, manifest, records, representation, stack_config, tombstone
from tests.readable import Publisher
from tests.test_transfer import upstream_weights
from topics.admin import ensure_topics
from topics.errors import RecordInvalid

pytestmark = [pytest.mark.slow]


def _carry(config: Config, kafka: str, put: Put) -> None:
    """Three users, carried; then one changes and one is deleted, carried as a version's changes."""
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{config.kafka.topic_prefix}-trainer")
    first = [representation(f"u{n}", 1) for n in range(3)]
    publisher.publish(1, records(first), manifest(1))
    bridge = Following(config, kafka, ("user",), put)
    assert bridge.carry_all() == 3
    changed = [representation("u0", 2), tombstone("u1", 2)]
    publisher.publish(2, records(changed), manifest(2))
    assert bridge.carry_changes(120) == 1
    bridge.close()
    publisher.close()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    binary = os.environ.get("HEADWATER_TEST_REDIS") or shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not on PATH (or HEADWATER_TEST_REDIS): not found")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.kafka
def test_redis_holds_what_a_reader_holds(kafka: str, prefix: str, redis_url: str) -> None:
    redis = pytest.importorskip("redis")
    from examples.redis_sink import redis_key, redis_put

    client = redis.Redis.from_url(redis_url)
    ends = time.monotonic() + 60
    while True:
        try:
            client.ping()
            break
        except redis.exceptions.ConnectionError:
            assert time.monotonic() < ends
            time.sleep(0.05)
    _carry(stack_config(prefix), kafka, redis_put(client, "user"))
    assert {k.decode() for k in client.scan_iter()} == {redis_key("user", i) for i in ("u0", "u2")}
    vector = np.frombuffer(client.hget(redis_key("user", "u0"), "vector"), "<f4")
    assert vector.tolist() == [2.0] * DIM
    assert client.hget(redis_key("user", "u2"), "version") == b"1"
    client.close()


@pytest.mark.kafka
def test_qdrant_bodies_are_as_its_rest_takes_them(
    kafka: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples.qdrant_upsert import json_put, point_id

    _carry(stack_config(prefix), kafka, json_put("user"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    assert [sorted(set(line) - {"collection"}) for line in lines] == [
        ["upsert"],
        ["upsert"],
        ["delete"],
    ]
    point = next(p for p in lines[1]["upsert"]["points"])
    assert point["id"] == point_id("user", "u0") and point["vector"] == [2.0] * DIM
    assert lines[2]["delete"]["points"] == [point_id("user", "u1")]


@pytest.mark.kafka
def test_a_qdrant_collection_holds_what_a_reader_holds(kafka: str, prefix: str) -> None:
    qdrant = pytest.importorskip("qdrant_client")
    from examples.qdrant_upsert import client_put

    client = qdrant.QdrantClient(":memory:")
    _carry(stack_config(prefix), kafka, client_put(client, "user"))
    found = client.query_points("headwater-user", query=[1.0] * DIM, limit=10).points
    assert [p.payload["id"] for p in found] == ["u0", "u2"]
    assert found[0].score == pytest.approx(2.0 * DIM)


@pytest.mark.kafka
def test_a_feast_online_store_answers(kafka: str, prefix: str, tmp_path: Path) -> None:
    feast = pytest.importorskip("feast")
    from examples.feast_push import feast_put, feature_view

    (tmp_path / "feature_store.yaml").write_text(
        "project: headwater\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\nentity_key_serialization_version: 3\n"
    )
    store = feast.FeatureStore(repo_path=str(tmp_path))
    store.apply(list(feature_view("user", tmp_path / "user.parquet")))
    _carry(stack_config(prefix), kafka, feast_put(store, "user"))
    answer = store.get_online_features(
        ["headwater_user:vector", "headwater_user:version"],
        [{"user_id": "u0"}, {"user_id": "u1"}, {"user_id": "u2"}],
    ).to_dict()
    assert answer["vector"][0] == [2.0] * DIM and not answer["vector"][1]
    assert answer["version"][2] == 1


@pytest.mark.kafka
def test_kcat_shows_a_line_that_can_be_read(kafka: str, prefix: str) -> None:
    binary = os.environ.get("HEADWATER_TEST_KCAT") or shutil.which("kcat")
    if binary is None:
        pytest.skip("kcat is not on PATH (or HEADWATER_TEST_KCAT): not found")
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{prefix}-trainer")
    publisher.publish(1, records([representation("u1", 1)]), manifest(1))
    publisher.close()
    page = Path(__file__).resolve().parent.parent / "docs" / "wire_format.md"
    line = next(t for t in page.read_text("utf-8").splitlines() if t.startswith("kcat "))
    command = shlex.split(line.replace("HOST:PORT", kafka).replace("headwater.", f"{prefix}."))
    done = subprocess.run([binary, *command[1:]], capture_output=True, timeout=60, check=True)
    shown = done.stdout.decode()
    assert shown.startswith(f"u1  {4 * DIM} bytes  hw_version=1,hw_step=10,hw_event_ms=1000,")
    assert shown.endswith(f"hw_dim={DIM},hw_dtype=float32,hw_schema=1\n")


def test_a_mix_tower_travels_as_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save

    weights = upstream_weights(8, 2, (6, 5))
    dense = save(
        {f"weight.{k}": v for k, v in weights.items()}
        | {"adam.step.x": weights["norm.bias"].clone()}
    )
    path = save_mix_tower(mix_tower(dense, 7), tmp_path / "exported")
    tower = load_mix_tower(tmp_path / "exported")
    assert (tower.wide, tower.cross_layers, tower.mix_dims, tower.version) == (8, 2, (6, 5), 7)
    assert set(tower.weights) == set(weights)
    assert all(tower.weights[k].equal(v) for k, v in weights.items())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordInvalid, match="not an exported mix tower"):
        load_mix_tower(tmp_path / "exported")
    with pytest.raises(RecordInvalid, match="got a model without mix tower"):
        mix_tower(save({"weight.norm.weight": weights["norm.weight"]}), 1)

"""`kill -9` of the trainer at random moments leaves the bytes of an uninterrupted run.

One sample log, written once per run into topics of its own (one partition, so one order); batches,
commits and versions are cut by count. Compared: every row of the store with its header and
optimizer state, every other durable record, and the newest record per key of every published
topic.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from confluent_kafka import Producer

from embedding_store.store import EmbeddingStore
from settings.config import Config
from settings.load import load_config
from tests.readable import await_readable
from tests.sample_log import KINDS, SLOTS_TOML, samples
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.errors import TopicUnavailable
from topics.lag import committed_offsets
from topics.names import REPRESENTATION_TOPICS, SAMPLES, trainer_group
from topics.sample import encode_sample
from topics.scan import end_offsets, read_to_end
from trainer.step import row_layout

IMPRESSIONS = 6_000
KILLS = 20 if os.environ.get("HEADWATER_PROVE") else 5
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _write_config(path: Path, prefix: str) -> Config:
    kinds = "".join(f'[kinds.{kind}]\nwindow = "20s"\n' for kind in KINDS)
    path.write_text(
        f"""domains = ["feed", "search"]
[kafka]
topic_prefix = "{prefix}"
partitions = 1
[join]
policy = "correct"
[trainer]
cut_by = "count"
batch_samples_max = 64
commit_every_steps = 4
[publish]
cross_half_life = "1h"
{kinds}{SLOTS_TOML}""",
        encoding="utf-8",
    )
    return load_config(path, env={}).config


def _write_log(config: Config, bootstrap: str) -> None:
    ensure_topics(config, bootstrap)
    producer = Producer(producer_settings(config, bootstrap))
    for sample in samples(IMPRESSIONS):
        producer.produce(config.topic(SAMPLES), encode_sample(sample), key=sample.user_id.encode())
        producer.poll(0)
    assert producer.flush(120) == 0


def _start(config_path: Path, bootstrap: str, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "trainer", "--config", str(config_path)),
            *("--bootstrap", bootstrap, "--store", str(store), "--until-end"),
        ],
        env=_ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run_to_end(config_path: Path, bootstrap: str, store: Path) -> float:
    started = time.monotonic()
    trainer = _start(config_path, bootstrap, store)
    _, said = trainer.communicate(timeout=400)
    assert trainer.returncode == 0, said
    return time.monotonic() - started


def _store_digest(config: Config, path: Path) -> dict[str, str]:
    """Content by kind of record, not RocksDB's files."""
    with EmbeddingStore.open(
        path, row_layout(config), cache_rows_max=config.store.cache_rows_max, owner="test"
    ) as store:
        return {"content": store.content_digest(), "rows": str(sum(1 for _ in store.rows()))}


def _published_digest(config: Config, bootstrap: str) -> dict[str, tuple[int, str]]:
    digests = {}
    await_readable(config, bootstrap, REPRESENTATION_TOPICS)
    for name in REPRESENTATION_TOPICS:
        newest: dict[bytes, bytes] = {}
        for _, message in read_to_end(config, bootstrap, [name]):
            headers = b"".join(k.encode() + bytes(v) for k, v in message.headers() or [])
            newest[message.key() or b""] = headers + (message.value() or b"tombstone")
        digest = hashlib.blake2b()
        for key in sorted(newest):
            digest.update(key + newest[key])
        digests[name] = (len(newest), digest.hexdigest())
    return digests


def _learnt(committed: Callable[[], Mapping[tuple[str, int], int]]) -> int:
    """Samples below the committed offset; none, where the broker does not answer just now."""
    try:
        return committed().get((SAMPLES, 0), 0)
    except TopicUnavailable:
        return 0


@pytest.fixture
def uninterrupted(kafka: str, prefix: str, tmp_path: Path) -> tuple[Config, Path]:
    path = tmp_path / "uninterrupted.toml"
    config = _write_config(path, f"{prefix}-a")
    _write_log(config, kafka)
    _run_to_end(path, kafka, tmp_path / "store-a")
    return config, path


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.kill
@pytest.mark.timeout(900)
def test_killed_trainer_ends_with_the_same_bytes(
    kafka: str, prefix: str, tmp_path: Path, uninterrupted: tuple[Config, Path]
) -> None:
    config_a, path_a = uninterrupted
    store_a = tmp_path / "store-a"
    # Nothing is left to learn, so this is how long a start takes; and it must change nothing.
    start_seconds = _run_to_end(path_a, kafka, store_a)
    path = tmp_path / "killed.toml"
    config_b = _write_config(path, f"{prefix}-b")
    _write_log(config_b, kafka)
    log_samples = end_offsets(config_b, kafka, [SAMPLES])[SAMPLES, 0]
    committed = committed_offsets(config_b, kafka, trainer_group(config_b), [SAMPLES])
    seed = int(os.environ.get("HEADWATER_SEED", random.randrange(2**31)))
    print(f"HEADWATER_SEED={seed}")  # noqa: T201  shown when the test fails, to run it again
    draw = random.Random(seed)
    store_b = tmp_path / "store-b"
    killed = 0
    for target in sorted(draw.randrange(log_samples * 2 // 3) for _ in range(KILLS)):
        trainer = _start(path, kafka, store_b)
        if draw.random() < 0.2:  # in the imports, or while it recovers what the last kill left
            time.sleep(start_seconds * draw.random())
        else:  # in a step, a commit or a publication
            while _learnt(committed) < target and trainer.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.random() * 0.2)
        # The moments are the clock's: where this process is held up, the trainer is done before.
        killed += trainer.poll() is None
        trainer.kill()
        _, said = trainer.communicate()
        assert trainer.returncode in (-signal.SIGKILL, 0), said
    assert killed > KILLS // 2, "the kills came too late to prove anything"
    _run_to_end(path, kafka, store_b)

    rows_a, rows_b = _store_digest(config_a, store_a), _store_digest(config_b, store_b)
    assert int(rows_a["rows"]) > 1000
    assert rows_b == rows_a
    published = _published_digest(config_a, kafka)
    assert all(count > 100 for count, _ in published.values())
    assert _published_digest(config_b, kafka) == published

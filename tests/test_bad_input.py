"""Whatever is thrown at it, the stream goes on, and the audit says where each event ended."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from embedding_store.store import EmbeddingStore
from runtime.producing import pair_key
from settings.config import Config
from stream.audit import audit
from tests.event_mutations import mutated
from tests.join_run import Bytes, Row, join_bounded, produce
from tests.sample_stream import config_toml, make_config, make_samples, write_samples
from topics.client import producer_settings
from topics.conversion import decode_conversion
from topics.errors import RecordInvalid
from topics.impression import decode_impression_head
from topics.sample import decode_sample
from trainer.step import row_layout

SEED = int(os.environ.get("HEADWATER_BAD_INPUT_SEED", "1"))
EVENTS = int(os.environ.get("HEADWATER_BAD_INPUT_EVENTS", "4000"))
START_MS = 1_600_000_000_000
YEAR_2099_MS = 4_070_908_800_000
KINDS = ("buy", "click")
IMPRESSION: dict[str, Any] = {
    "impression_id": "i1",
    "event_ms": START_MS,
    "user_id": "u1",
    "item_id": "a1",
    "domain": "feed",
    "features": {
        "os": "ios",
        "age": 3.5,
        "tags": ["a", "é"],
        "history": [{"item_id": "x", "event_ms": 5}],
    },
    "position": 2,
    "more": {"k": [1, None, True]},
}
CONVERSION: dict[str, Any] = {
    "conversion_id": "c1",
    "impression_id": None,
    "event_ms": START_MS + 500,
    "user_id": "u1",
    "item_id": "a1",
    "kind": "buy",
    "value": 9.5,
}


def _in_time(value: bytes, index: int) -> bytes:
    """Its own time for each event, where the accident left the field alone."""
    return value.replace(b"1600000000", b"%d" % (1_600_000_000 + index), 1)


def _as_bytes(event: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps(event | changes).encode()


def _is_event(stream: str, value: bytes | None, bytes_max: int) -> bool:
    try:
        if value is None or len(value) > bytes_max:
            return False
        if stream == "impressions":
            decode_impression_head(value)
        else:
            decode_conversion(value, KINDS)
    except RecordInvalid:
        return False
    return True


def _produce_as_a_stranger(config: Config, bootstrap: str, values: list[bytes]) -> None:
    """Compressed by the one codec that Flink does not bring: what the broker weighs is small."""
    settings = producer_settings(config, bootstrap)
    settings |= {"compression.type": "zstd", "message.max.bytes": 100_000_000}
    producer = Producer(settings)
    for value in values:
        producer.produce(config.topic("impressions"), value, b"u\x1fa" if value[:1] else None)
    producer.produce(config.topic("impressions"), values[0], b"k" * 50_000)
    assert producer.flush(120) == 0


@pytest.mark.kafka
@pytest.mark.flink
@pytest.mark.slow
def test_the_join_and_the_audit_agree_on_every_mutated_event(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    random_ = random.Random(SEED)
    config = Config.model_validate(
        {
            "kafka": {"topic_prefix": prefix},
            "kinds": {kind: {"window": "1h"} for kind in KINDS},
            "join": {"lateness": "1d"},
        }
    )
    bytes_max = config.events.bytes_max
    first = _as_bytes(IMPRESSION, event_ms=YEAR_2099_MS, impression_id="2099")
    values = {
        stream: [_in_time(mutated(random_, event), index) for index in range(EVENTS // 2)]
        for stream, event in (("impressions", IMPRESSION), ("conversions", CONVERSION))
    }
    # Of every partition the first event is one of the year 2099.
    futures = [_as_bytes(IMPRESSION, event_ms=YEAR_2099_MS, item_id=f"i{n}") for n in range(16)]
    values["impressions"] = [first, *futures, *values["impressions"]]
    long_kind = _as_bytes(CONVERSION, kind="k" * (bytes_max - 1000))
    long_id = _as_bytes(IMPRESSION, user_id="u" * (bytes_max - 1000))
    values["conversions"].append(long_kind)
    values["impressions"].append(long_id)
    events: dict[str, list[Bytes]] = {
        stream: [(pair_key(value), value) for value in of] for stream, of in values.items()
    }
    placed = produce(config, kafka, events)
    large = [_as_bytes(IMPRESSION, more="x" * size) for size in (2_000_000, 40_000_000)]
    _produce_as_a_stranger(config, kafka, [*large, _as_bytes(IMPRESSION, item_id="good")])

    rows = join_bounded(config, kafka, tmp_path)

    report = audit(config, kafka, bounded=True)
    assert report.balanced, report.differences
    ended = {row.about: row for row in rows}
    for about, (stream, position) in placed.items():
        value, row = values[stream][position], ended[about]
        expected = _is_event(stream, value, bytes_max) and not _is_ahead(row)
        assert (row.topic != "undecodable") is expected, (value[:300], row.headers)
    for row in rows:
        if row.topic == "samples":
            assert row.value is not None
            decode_sample(row.value)  # what the join lets through, the trainer can read
    ahead = [row for row in rows if row.topic == "undecodable" and row.value == first]
    assert len(ahead) == 1
    _expect_cut(rows, large, bytes_max)
    assert report.impressions.sampled + report.impressions.duplicate > EVENTS // 10
    assert report.impressions.undecodable > EVENTS // 10


def _is_ahead(row: Row) -> bool:
    return row.headers.get("hw_reason", "").startswith("event_ms: expected at most")


def _expect_cut(rows: list[Row], large: list[bytes], bytes_max: int) -> None:
    """An event over the limit is kept as far as it fits, and its reason says how large it was."""
    reasons = [row for row in rows if row.headers.get("hw_reason", "").startswith("size: expected")]
    assert len(reasons) == len(large) + 1  # the first was sent twice
    for value in large:
        row = next(r for r in reasons if f"got {len(value)};" in r.headers["hw_reason"])
        assert row.topic == "undecodable"
        assert row.value == value[:bytes_max]


def _full_at(size: int) -> Callable[[], None]:
    """Files of this process cannot grow beyond `size` bytes, as on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.slow
def test_a_full_disk_ends_the_trainer_with_its_reason_and_the_store_goes_on(tmp_path: Path) -> None:
    config_file = tmp_path / "c.toml"
    config_file.write_text(config_toml("t", commit_every_steps=1))
    samples = write_samples(make_samples(1500), tmp_path / "s.jsonl")

    def train(store: str, limit: Callable[[], None] | None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trainer", "--config", str(config_file)]
        command += ["--samples", str(samples), "--store", str(tmp_path / store)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
            preexec_fn=limit,
        )

    full = train("filled", _full_at(2_000_000))
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stderr
    reason = full.stderr.strip().splitlines()[-1]
    assert reason.startswith("trainer: "), reason
    assert "File too large" in reason
    cut_off, _ = _content(tmp_path / "filled")
    for store in ("filled", "whole"):
        done = train(store, None)
        assert done.returncode == 0, done.stderr
    (filled, content), (whole, expected) = (
        _content(tmp_path / "filled"),
        _content(tmp_path / "whole"),
    )
    assert 0 < cut_off < filled == whole
    assert content == expected


def _content(store: Path) -> tuple[int, object]:
    layout = row_layout(make_config())
    with EmbeddingStore.open(store, layout, cache_rows_max=4096, owner="test") as opened:
        return opened.commit_id, opened.content_digest()

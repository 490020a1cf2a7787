"""The whole loop over a file: crashes at every point cost nothing, byte for byte."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from embedding_store.errors import StoreLocked
from embedding_store.policies import admission_filter
from embedding_store.store import EmbeddingStore
from settings.config import Config
from tests.sample_stream import config_toml, make_config, make_samples, write_samples
from topics.errors import PublisherFenced, TopicUnavailable
from topics.manifest import Manifest
from topics.publisher import Record
from trainer.bounded import run_bounded
from trainer.feed import Feed
from trainer.loop import Loop
from trainer.source import FileSource, SourceRecord
from trainer.step import row_layout


class Crash(Exception):
    """The process dies here."""


class VersionLog:
    """A sink that keeps the newest record per key, as a compacted topic does, and can die before or
    after it took a version."""

    def __init__(self) -> None:
        self.newest: dict[tuple[str, bytes], tuple[bytes | None, list[tuple[str, bytes]]]] = {}
        self.versions: list[int] = []
        self.manifests: dict[int, Manifest] = {}
        self.before: Callable[[int], None] = lambda _version: None
        self.after: Callable[[int], None] = lambda _version: None

    def publish(self, version: int, records: list[Record], manifest: Manifest) -> Manifest:
        self.before(version)
        for topic, key, value, headers in records:
            self.newest[topic, key] = (value, headers)
        self.versions.append(version)
        known = self.manifests.setdefault(version, manifest)
        assert known == manifest, "a version was published again with other content"
        self.after(version)
        return manifest


class CrashingSource(FileSource):
    """Dies when a poll would hand out the record at `crash_at`, or hands out in odd portions."""

    def __init__(self, path: Path, offsets: dict, crash_at: int | None, draw: random.Random):  # type: ignore[type-arg]
        super().__init__(path, offsets)
        self._crash_at, self._draw = crash_at, draw

    def poll(self, count: int, timeout_seconds: float) -> list[SourceRecord]:
        records = super().poll(self._draw.randrange(1, count + 1), timeout_seconds)
        if any(r.offset == self._crash_at for r in records):
            raise Crash
        return records


def _open(path: Path, config: Config, table_rows_min: int = 8192) -> EmbeddingStore:
    return EmbeddingStore.open(
        path,
        row_layout(config),
        cache_rows_max=2048,
        owner="test",
        admission=admission_filter(config.admission),
        table_rows_min=table_rows_min,
    )


def _run(
    folder: Path,
    config: Config,
    samples: Path,
    sink: VersionLog,
    crash_at: int | None = None,
    seed: int = 0,
    *,
    table_rows_min: int = 8192,
) -> dict[str, str] | None:
    """Digests of the store at the end of the input, or None after a crash."""
    with _open(folder, config, table_rows_min) as store:
        loop = Loop(config, store, sink=sink)
        source = CrashingSource(samples, loop.progress.offsets, crash_at, random.Random(seed))
        try:
            loop.run(Feed(source, loop.plan, config.trainer))
        except Crash:
            return None
        finally:
            source.close()
        return store.content_digest()


@pytest.mark.slow
@pytest.mark.parametrize(("correct", "table_rows_min"), [(False, 1), (True, 8192)])
def test_a_run_with_crashes_ends_with_the_same_bytes(
    tmp_path: Path, correct: bool, table_rows_min: int
) -> None:
    """With 1, every commit of the crashing run is a table built while the loop goes on."""
    config = make_config(
        join={"policy": "correct" if correct else "wait"}, publish={"every_commits": 2}
    )
    samples = make_samples(900, correct=correct)
    file = write_samples(samples, tmp_path / "samples.jsonl")
    whole = VersionLog()
    expected = _run(tmp_path / "whole", config, file, whole)
    assert expected is not None and whole.versions == sorted(set(whole.versions))

    crashed, draw = VersionLog(), random.Random(7)
    points = sorted(draw.sample(range(1, len(samples)), 8))
    dying = {1: "before", 2: "after"}

    def die(where: str) -> Callable[[int], None]:
        def check(version: int) -> None:
            if dying.get(version) == where:
                del dying[version]
                raise Crash

        return check

    crashed.before, crashed.after = die("before"), die("after")
    runs = 0
    while (
        digest := _run(
            tmp_path / "crashed",
            config,
            file,
            crashed,
            points[0] if points else None,
            runs,
            table_rows_min=table_rows_min,
        )
    ) is None:
        runs += 1
        points = points[1:] if points and runs > 2 else points
        assert runs < 30
    assert runs >= 8 and not dying
    assert digest == expected
    assert crashed.newest == whole.newest
    assert len(crashed.versions) > len(set(crashed.versions))  # one was published twice


def test_nothing_is_published_before_its_commit_is_on_disk(tmp_path: Path) -> None:
    config = make_config()
    file = write_samples(make_samples(400), tmp_path / "samples.jsonl")
    log, on_disk = VersionLog(), []
    with _open(tmp_path / "store", config, table_rows_min=1) as store:

        def look(version: int) -> None:
            on_disk.append(store._rocks.get(b"soutbox\0" + version.to_bytes(8, "big")) is not None)

        log.before = look
        loop = Loop(config, store, sink=log)
        source = CrashingSource(file, {}, None, random.Random(0))
        loop.run(Feed(source, loop.plan, config.trainer))
        source.close()
        assert store.stats().table_bytes > 0
    assert on_disk == [True] * len(log.versions) and len(log.versions) == 3


def test_the_manifest_says_what_the_version_holds(tmp_path: Path) -> None:
    config = make_config()
    samples = make_samples(400)
    file = write_samples(samples, tmp_path / "samples.jsonl")
    log = VersionLog()
    _run(tmp_path / "store", config, file, log)
    last = log.manifests[max(log.manifests)]
    assert last.step == 7 and last.version == 3  # 6 full batches of 64, one partial; cut at 3, 6, 7
    assert last.event_ms == max(s.event_ms + max(s.delays_ms.values(), default=0) for s in samples)
    assert list(last.source_offsets.values()) == [{0: 400}]
    assert last.evaluation["click"].samples == 400
    assert last.counts["user"] > 0 and last.counts["tombstones"] == 0
    assert last.created_ms == max(s.produced_ms for s in samples)  # by count: no clock in bytes


def test_an_impression_counts_once_with_the_prediction_of_its_first_sight(tmp_path: Path) -> None:
    config = make_config(join={"policy": "correct"})
    samples = make_samples(300, correct=True)
    report = run_bounded(write_samples(samples, tmp_path / "s.jsonl"), config, tmp_path / "store")
    finals = [s for s in samples if s.state == "final"]
    assert report["progressive"]["click"]["samples"] == len(finals) == 300
    assert report["progressive"]["click"]["positives"] == sum(s.labels["click"] for s in finals)
    assert report["unseen_finals"] == 0
    with _open(tmp_path / "store", config) as store:
        assert list(store.scan("pending")) == []  # every prediction was scored


def test_finals_without_an_early_are_predicted_then_and_said(tmp_path: Path) -> None:
    config = make_config(join={"policy": "correct"})
    samples = [s for s in make_samples(100, correct=True) if s.state != "early"]
    samples.sort(key=lambda s: s.event_ms)  # corrections and finals of one impression together
    report = run_bounded(write_samples(samples, tmp_path / "s.jsonl"), config, None)
    assert report["unseen_finals"] == 100
    assert report["progressive"]["click"]["samples"] == 100


def test_lines_that_are_not_samples_are_counted_and_passed_over(tmp_path: Path) -> None:
    file = write_samples(make_samples(50), tmp_path / "s.jsonl")
    file.write_bytes(b"{not json\n" + file.read_bytes() + b'{"impression_id": 1}\n\n')
    report = run_bounded(file, make_config(), None)
    assert report["rejected"] == 2 and report["samples"] == {"final": 50}


def test_an_empty_file_is_a_report_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"")
    report = run_bounded(tmp_path / "s.jsonl", make_config(), None)
    assert report["progressive"]["click"]["samples"] == 0 and report["steps"] == 0


def test_a_run_continues_where_its_store_is(tmp_path: Path) -> None:
    config, store = make_config(), tmp_path / "store"
    samples = make_samples(200)
    file = write_samples(samples[:120], tmp_path / "s.jsonl")
    run_bounded(file, config, store)
    write_samples(samples, file)
    assert run_bounded(file, config, store)["samples"] == {"final": 200}


@pytest.mark.parametrize("name", ["es_dfm", "defer"])
def test_nuisance_heads_are_durable_with_the_model(tmp_path: Path, name: str) -> None:
    """A run that stops at a commit and goes on is the run that did not stop, heads included."""
    config = make_config(
        join={"policy": "correct", "elapsed": "20s"}, model={"delayed_feedback": name}
    )
    samples = make_samples(500, correct=True)
    whole = write_samples(samples, tmp_path / "whole.jsonl")
    parts = write_samples(samples[: 64 * 3 * 4], tmp_path / "parts.jsonl")
    run_bounded(whole, config, tmp_path / "a")
    run_bounded(parts, config, tmp_path / "b")
    run_bounded(write_samples(samples, parts), config, tmp_path / "b")
    digests = []
    for folder in ("a", "b"):
        with _open(tmp_path / folder, config) as store:
            digests.append(store.content_digest())
            dense = load(store.get("trainer", b"dense") or b"")
            bias = dense["weight.nuisance.heads.0.bias"]
            assert (bias != torch.tensor([-4.0, 4.0])).all()  # matured rows moved both
    assert digests[0] == digests[1]


def test_a_broker_that_is_away_is_waited_for(tmp_path: Path) -> None:
    config = make_config()
    file = write_samples(make_samples(100), tmp_path / "s.jsonl")
    log, tries = VersionLog(), []

    def away(version: int) -> None:
        tries.append(version)
        if len(tries) < 3:
            raise TopicUnavailable("no broker")

    log.before = away
    _run(tmp_path / "store", config, file, log)
    assert tries == [1, 1, 1] and log.versions == [1]


def test_a_fenced_publisher_ends_the_run_and_the_version_stays_in_the_outbox(
    tmp_path: Path,
) -> None:
    config = make_config()
    file = write_samples(make_samples(100), tmp_path / "s.jsonl")
    log = VersionLog()

    def fence(_version: int) -> None:
        raise PublisherFenced("another process uses the same transactional id")

    log.before = fence
    with pytest.raises(PublisherFenced):
        _run(tmp_path / "store", config, file, log)
    log.before = lambda _version: None
    _run(tmp_path / "store", config, file, log)
    assert log.versions == [1]


@pytest.mark.parametrize(("model", "kinds"), [("lr", set()), ("shared_bottom", {"cross"})])
def test_a_model_publishes_what_it_has(tmp_path: Path, model: str, kinds: set[str]) -> None:
    config = make_config(model={"name": model})
    log = VersionLog()
    _run(tmp_path / "s", config, write_samples(make_samples(300), tmp_path / "s.jsonl"), log)
    assert {topic.removeprefix("representations.") for topic, _ in log.newest} == kinds


def test_a_second_trainer_on_a_store_is_refused_by_name(tmp_path: Path) -> None:
    config = make_config()
    file = write_samples(make_samples(10), tmp_path / "s.jsonl")
    with _open(tmp_path / "store", config), pytest.raises(StoreLocked, match="owner=`test` pid=`"):
        run_bounded(file, config, tmp_path / "store")


@pytest.mark.slow
@pytest.mark.kill
def test_kill_9_of_the_process_ends_with_the_same_rows(tmp_path: Path) -> None:
    file = write_samples(make_samples(2500), tmp_path / "s.jsonl")
    config_file = tmp_path / "c.toml"
    config_file.write_text(config_toml("t", batch_samples_max=16, commit_every_steps=2))

    def command(store: str) -> list[str]:
        return [
            *(sys.executable, "-m", "trainer", "--config", str(config_file)),
            *("--samples", str(file), "--store", str(tmp_path / store)),
            *("--report", str(tmp_path / "r.json")),
        ]

    subprocess.run(command("whole"), check=True, timeout=240)
    kills = 0
    for wait_commits in (3, 40):
        process = subprocess.Popen(command("killed"))
        log = tmp_path / "killed" / "rocks"
        while process.poll() is None and not _grown(log, wait_commits):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    subprocess.run(command("killed"), check=True, timeout=240)
    from settings.load import load_config

    config = load_config(config_file, env={}).config
    digests = []
    for name in ("whole", "killed"):
        with _open(tmp_path / name, config) as store:
            digests.append(store.content_digest())
    assert digests[0] == digests[1]


def _grown(rocks: Path, commits: int) -> bool:
    """Whether about so many commits are in RocksDB's log (a commit is some 300 kB of weights)."""
    try:
        return sum(f.stat().st_size for f in rocks.glob("*.log")) > commits * 300_000
    except FileNotFoundError:
        return False

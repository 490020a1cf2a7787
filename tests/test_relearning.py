"""A store restored from a checkpoint relearns what it lost; readers never see a version go back."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

import pytest

from embedding_store.checkpoints import list_checkpoints
from embedding_store.restore import restore
from embedding_store.verify import verify_files
from settings.config import Config
from settings.load import ConfigError
from tests.sample_stream import make_config, make_samples, write_samples
from tests.test_loop import Crash, CrashingSource, VersionLog, _open
from topics.manifest import Manifest
from trainer.checkpointing import Checkpointing
from trainer.durable import Progress
from trainer.feed import Feed
from trainer.loop import Loop
from trainer.relearning import Numbering

pytestmark = pytest.mark.slow


def _run(
    folder: Path,
    config: Config,
    samples: Path,
    sink: VersionLog,
    crash_at: int | None = None,
    wall: float = 7.0,
) -> dict[str, str] | None:
    """As the trainer's process does: with checkpoints, and knowing what is published."""
    ticks = itertools.count()
    with _open(folder, config) as store:
        checkpointing = Checkpointing(
            config, store, clock=lambda: 100.0 * next(ticks), wall=lambda: wall
        )

        def after_commit() -> None:
            checkpointing.wait()  # one that is due is passed over while another is under way
            checkpointing.after_commit()

        loop = Loop(
            config,
            store,
            sink=sink,
            published=dict(sink.manifests),
            after_commit=after_commit,
        )
        source = CrashingSource(samples, loop.progress.offsets, crash_at, random.Random(3))
        try:
            loop.run(Feed(source, loop.plan, config.trainer))
        except Crash:
            return None
        finally:
            checkpointing.wait()
            source.close()
        return store.content_digest()


def _config(cut_by: str, **more: object) -> Config:
    trainer = {"cut_by": cut_by, "batch_samples_max": 20, "commit_every_steps": 2}
    if cut_by == "time":
        trainer |= {"commit_every": "0ms", "batch_wait": "10s"}
    checkpoints = {"every": "250s", "kept": 4, **more}  # the clock goes 100 s a look
    return make_config(trainer=trainer, checkpoints=checkpoints)


@pytest.mark.parametrize("again", [False, True])
def test_restored_by_count_ends_with_the_same_bytes(tmp_path: Path, again: bool) -> None:
    """Nothing is published twice, nothing is missing; with `again` it dies while it relearns."""
    config = _config("count", copy_to=str(tmp_path / "copies"))
    file = write_samples(make_samples(450), tmp_path / "samples.jsonl")
    whole, broken = VersionLog(), VersionLog()
    expected = _run(tmp_path / "whole", _config("count"), file, whole)

    store = tmp_path / "store"
    assert _run(store, config, file, broken, crash_at=380) is None
    reached = list(broken.versions)
    checkpoints = list_checkpoints(tmp_path / "copies")
    assert len(checkpoints) >= 3 and all(not verify_files(c.path).faults for c in checkpoints)
    table = max((checkpoints[0].path / "rocks").glob("*.sst"))
    table.write_bytes(table.read_bytes()[:-1])
    taken = restore(tmp_path / "copies", store)
    assert taken.commit_id == checkpoints[1].commit_id
    assert 0 < taken.about["version"] < reached[-1] - 1, "versions are to be relearnt"
    if again:
        offset = min(taken.about["offsets"].popitem()[1].values())
        assert _run(store, config, file, broken, crash_at=offset + 45) is None
        assert broken.versions == reached, "it was still relearning"
    assert _run(store, config, file, broken) == expected
    assert broken.versions == whole.versions == sorted(set(whole.versions))
    assert broken.newest == whole.newest and broken.manifests == whole.manifests


def test_restored_by_time_goes_on_above_the_newest_version(tmp_path: Path) -> None:
    config = _config("time")
    file = write_samples(make_samples(300), tmp_path / "samples.jsonl")
    sink, store = VersionLog(), tmp_path / "store"
    assert _run(store, config, file, sink, crash_at=250) is None
    reached = sink.versions[-1]
    shutil.rmtree(list_checkpoints(tmp_path / "store.checkpoints")[0].path)
    taken = restore(tmp_path / "store.checkpoints", store)
    assert taken.about["version"] < reached
    assert _run(store, config, file, sink) is not None
    assert sink.versions == sorted(set(sink.versions)) and sink.versions[-1] > reached
    offsets = [m.source_offsets for m in sink.manifests.values()]
    (topic,) = offsets[-1]
    assert offsets[-1][topic][0] == 300, "everything was relearnt and published"


def test_an_outbox_behind_the_topic_is_not_published(tmp_path: Path) -> None:
    """A checkpoint holds its newest version's records until that version is known to be out."""
    config = _config("count")
    file = write_samples(make_samples(300), tmp_path / "samples.jsonl")
    sink, store = VersionLog(), tmp_path / "store"
    _run(store, config, file, sink)
    restore(tmp_path / "store.checkpoints", store)
    with _open(store, config) as opened:
        assert list(opened.scan("outbox")), "nothing to leave out"
    before = list(sink.versions)
    _run(store, config, file, sink)
    assert sink.versions == before
    with _open(store, config) as opened:
        assert not list(opened.scan("outbox"))


def test_numbers_go_on_above_what_cannot_be_recognised() -> None:
    there = {
        n: Manifest(
            version=n,
            step=10 * n,
            created_ms=0,
            event_ms=0,
            watermark_ms=-1,
            counts={},
            source_offsets={"samples": {0: 100 * n}},
            evaluation={},
        )
        for n in (3, 4, 5)
    }

    def next_of(version: int, step: int, offset: int, cut_by: str = "count") -> tuple[int, bool]:
        progress = Progress(version=version, step=step, offsets={"samples": {0: offset}})
        return Numbering(there, cut_by=cut_by).next(progress)  # type: ignore[arg-type]

    assert next_of(3, 40, 400) == (4, True)
    assert next_of(3, 40, 401) == (6, False), "cut elsewhere: other content"
    assert next_of(3, 41, 400) == (6, False)
    assert next_of(1, 20, 200) == (6, False), "its manifest is no longer kept"
    assert next_of(3, 40, 400, "time") == (6, False)
    assert next_of(5, 60, 600) == (6, False) and next_of(8, 60, 600) == (9, False)


def test_a_directory_that_cannot_hold_links_is_refused(tmp_path: Path) -> None:
    config = _config("count", directory="/dev/shm/headwater-checkpoints")
    with _open(tmp_path / "store", config) as store:
        with pytest.raises(ConfigError, match="expected one on the store's disk"):
            Checkpointing(config, store)
        config = _config("count", copy_to=str(tmp_path / "store.checkpoints"))
        with pytest.raises(ConfigError, match="another place than the checkpoints'"):
            Checkpointing(config, store)


def test_a_trainer_that_never_lives_that_long_has_checkpoints_all_the_same(tmp_path: Path) -> None:
    """Each life lasts some 300 s of its clock; a checkpoint is due every 1,000 s."""
    config = _config("count", every="1000s")
    file = write_samples(make_samples(400), tmp_path / "samples.jsonl")
    sink, store, counted = VersionLog(), tmp_path / "store", []
    for wall, crash_at in ((5_000.0, 90), (5_300.0, 180), (5_600.0, 270), (6_400.0, 360)):
        assert _run(store, config, file, sink, crash_at, wall) is None
        counted.append(len(list_checkpoints(tmp_path / "store.checkpoints")))
    assert counted == [0, 1, 1, 2], "not of a new store; of the next life; not while that is young"

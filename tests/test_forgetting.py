"""No record of the store names a forgotten user, whatever the model and what is kept beside it."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
import xxhash

from embedding_store.keys import row_keys
from embedding_store.reading import StoreReader
from settings.config import Config
from tests.sample_stream import make_config, make_samples, write_samples
from tests.test_loop import CrashingSource, VersionLog, _open, _run
from topics.control import Command
from trainer.feed import Feed
from trainer.loop import Loop

USER = "user-to-forget"


class Asked:
    """An operator who has asked before the run began."""

    def __init__(self, *commands: Command) -> None:
        self._commands = list(commands)

    def waiting(self) -> bool:
        return bool(self._commands)

    def take(self) -> list[tuple[int, Command]]:
        taken, self._commands = self._commands, []
        return list(enumerate(taken, start=1))


def _naming(folder: Path) -> set[str]:
    """Spaces with a record that names the user, by id or by hash; and `rows`."""
    reader = StoreReader(folder, "test")
    names = (USER.encode(), xxhash.xxh3_64_intdigest(USER.encode()).to_bytes(8, "little"))
    try:
        found = {
            space
            for space, key, value in reader.state()
            if any(name in key or name in value for name in names)
        }
        return found | ({"rows"} if reader.rows(row_keys("user_id", [USER]))[1].any() else set())
    finally:
        reader.close()


def _forget(folder: Path, config: Config, file: Path, created_ms: int) -> VersionLog:
    log = VersionLog()
    with _open(folder, config) as store:
        asked = Asked(Command(verb="forget", created_ms=created_ms, user_id=USER))
        loop = Loop(config, store, sink=log, commands=asked)
        source = CrashingSource(file, loop.progress.offsets, None, random.Random(0))
        loop.run(Feed(source, loop.plan, config.trainer))
        source.close()
    return log


@pytest.mark.parametrize(
    ("model", "own"), [("lfm4ads", {"published", "sweep"}), ("crossdistil", {"reservoir"})]
)
def test_nothing_in_the_store_names_a_forgotten_user(
    tmp_path: Path, model: str, own: set[str]
) -> None:
    config = make_config(
        model={"name": model},
        join={"policy": "correct"},
        publish={"vectors_max": 8, "age_max": "3min"},
        evaluation={"arms": True, "arms_every": "2min", "arms_share": 1.0},
    )
    samples = [
        msgspec.structs.replace(s, user_id=USER) if s.user_id in {"u1", "u2"} else s
        for s in make_samples(320, correct=True)
    ]
    first = samples[:-100]  # finals come two hours behind the first impressions
    waiting = {s.impression_id for s in first if s.user_id == USER}
    waiting -= {s.impression_id for s in first if s.state == "final"}
    assert waiting, "predictions of the user wait for their finals"

    file = write_samples(first, tmp_path / "samples.jsonl")
    _run(tmp_path / "store", config, file, VersionLog())
    arms = {f"scored.{arm}" for arm in ("live", "daily", "frozen")}
    assert _naming(tmp_path / "store") >= {"rows", "entity", "entity_row", "scored"} | arms | own

    write_samples(samples, file)
    log = _forget(tmp_path / "store", config, file, max(s.produced_ms for s in samples))
    assert _naming(tmp_path / "store") == set()
    reader = StoreReader(tmp_path / "store", "test")
    left = {key.decode() for space, key, _ in reader.state() if space.startswith("pending")}
    reader.close()
    assert not left & waiting, "predictions of what is passed over wait for nothing"
    gone = {(t, k.decode()) for (t, k), (value, _) in log.newest.items() if value is None}
    assert ("representations.cross", f"user:{USER}") in gone
    forgotten = next(m for m in log.manifests.values() if m.reason == "forgotten")
    assert forgotten.counts["tombstones"] == len(gone)

"""`kill -9` while a store commits, evicts, takes, copies and prunes checkpoints, or is restored.

Each kill is aimed at one phase. Afterwards, both ways: what was promised is there and whole, and
what was under way is there whole or not at all. `tests/knobs.py` says how to run more of it.
Commits
in the log and beside training, and migration, have loops of their own: `test_store_crash`,
`test_store_commit`, `test_migrate`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from embedding_store.checkpoints import list_checkpoints
from embedding_store.restore import open_and_verify
from embedding_store.verify import verify_files
from tests.checkpoint_writer import PHASES, work_until_killed
from tests.knobs import SEED, kills
from tests.store_writer import open_store
from tests.test_store_crash import Truth

KILLS = kills(12, 220)


class _Promised:
    """The newest commit that each place was said to hold, and what was being done."""

    def __init__(self) -> None:
        self.newest = Counter[str]()
        self.doing = ""

    def hear(self, told: tuple[str, str, int]) -> None:
        what, where, commit_id = told
        if what == "doing":
            self.doing = where
        else:
            place = "store" if where in {"commit", "open"} else where
            self.newest[place] = max(self.newest[place], commit_id)


def _killed_while(process: Any, pipe: Any, phase: str, seconds: float) -> _Promised:
    """Kill `process` `seconds` into `phase`."""
    promised = _Promised()
    while promised.doing != phase:
        promised.hear(pipe.recv())
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            promised.hear(pipe.recv())
    return promised


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.timeout(7200)
def test_kill_9_leaves_every_promise_whole(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.store_writer_warm"])
    draw, hit = random.Random(SEED), Counter[str]()
    truth = Truth(tmp_path / "truth", keep_every=10**6)
    for kill in range(KILLS):
        ours, theirs = processes.Pipe()
        child = processes.Process(target=work_until_killed, args=(tmp_path, theirs), daemon=True)
        child.start()
        theirs.close()
        phase = PHASES[kill % len(PHASES)]
        promised = _killed_while(
            child, ours, phase, draw.choice((0.0, 0.003, 0.02)) * draw.random()
        )
        hit[promised.doing] += 1
        where = (kill, promised.doing, SEED)
        for folder in ("links", "copies"):
            found = list_checkpoints(tmp_path / folder)
            for checkpoint in found:
                assert not checkpoint.damaged, where
                assert not verify_files(checkpoint.path).faults, where
            if promised.newest[folder]:
                assert found and found[0].commit_id >= promised.newest[folder], where
        with open_store(tmp_path / "store") as store:
            assert store.commit_id <= promised.newest["store"] + 1, where
            assert store.commit_id >= promised.newest["store"], where
            assert store.content_digest() == truth.after(store.commit_id), where
            store.verify()
        if kill % 10 == 3:
            newest = list_checkpoints(tmp_path / "copies")[0]
            opened = tmp_path / "opened"
            shutil.copytree(newest.path, opened)
            assert open_and_verify(opened) > 0
            with open_store(opened) as store:
                assert store.content_digest() == truth.after(newest.commit_id), where
            shutil.rmtree(opened)
    truth.close()
    print(f"{KILLS} kills, seed {SEED}: {dict(hit)}")  # noqa: T201  for the record of a long run
    assert len(hit) >= min(KILLS, 4), hit

"""A commit beside training: what it holds, what it hides, and what any crash leaves of it.

The child that builds its table is stopped where a test needs to look at a commit under way.
"""

from __future__ import annotations

import array
import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_store.errors import StoreMisuse, StorePoisoned
from embedding_store.store import EmbeddingStore
from tests.knobs import PROVE, SEED, kills
from tests.store_oracle import scripted_step
from tests.store_writer import open_store, run_commit, write_beside_commits_until_killed
from tests.store_writer import write_until_poisoned as until_poisoned

KILLS = kills(8, 100)


@contextmanager
def _stopped_builder(store: EmbeddingStore) -> Iterator[None]:
    """The child does nothing inside the `with`: a commit that begins there stays under way."""
    if store._commits.builder.child_pid is None:
        _step(store, 0)
        store.commit()  # starts it
    pid = store._commits.builder.child_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)  # until it stands still: before that it still reads
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _step(store: EmbeddingStore, step: int) -> None:
    scripted_step(store, step, ids=60, universe=1000)


def _remove_some(store: EmbeddingStore, draw: random.Random) -> None:
    keys = [key for key, _, _ in store.rows() if draw.random() < 0.1]
    assert store.remove(np.array(keys, np.uint64)) == len(keys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30 if PROVE else 3))
def test_overlapped_commits_prefetch_and_eviction_change_no_byte(tmp_path: Path, seed: int) -> None:
    """One store commits at once and reads when it must; the other overlaps and reads ahead."""
    plain = open_store(tmp_path / "plain")
    other = open_store(tmp_path / "other", table_rows_min=1)
    draw, pending, opened = random.Random(seed), None, 0
    digests = {0: plain.content_digest()}
    for step in range(60):
        action = draw.random()
        if action < 0.3:
            digests[plain.commit()] = plain.content_digest()
            if pending is not None:
                pending.wait()
            pending = other.commit_begin()
        elif action < 0.4:
            same = draw.getrandbits(32)
            _remove_some(plain, random.Random(same))
            _remove_some(other, random.Random(same))
        elif action < 0.5 and pending is not None:
            pending.wait()
            pending = None
        if draw.random() < 0.7:
            ahead = np.array([key for key, _, _ in plain.rows() if draw.random() < 0.3], np.uint64)
            other.prefetch(ahead)
        for store in (plain, other):
            _step(store, step)
        assert other.content_digest() == plain.content_digest(), (seed, step)
        if draw.random() < 0.15:  # the files as a crash would leave them, opened elsewhere
            opened += 1
            files = tmp_path / str(opened)
            began = other._commits.newest.id
            _copy_files(other.path, files)
            with open_store(files) as crashed:
                assert began <= crashed.commit_id <= plain.commit_id
                assert crashed.content_digest() == digests[crashed.commit_id], (seed, step)
                assert not list((files / "building").glob("*"))
                crashed.verify()
    if pending is not None:
        pending.wait()
    assert other.commit() == plain.commit()
    for store in (plain, other):
        store.verify()
    told = [store.stats() for store in (plain, other)]
    assert told[1].table_bytes > 0 == told[0].table_bytes
    assert told[0].rows_evicted > 500 and told[0].lookups_spilled > 20
    assert told[0].rows_total == told[1].rows_total
    assert (
        plain._commits.newest == other._commits.newest
    )  # history included: the same commits, the same bytes
    plain.close()
    other.close()


def _copy_files(source: Path, target: Path) -> None:
    """The files as they are at one moment. A copy takes longer than that: one during which a file
    came, went or grew (a commit is being taken in) shows what no crash leaves, and is made anew."""
    for _ in range(200):
        before = _listing(source)
        try:
            shutil.copytree(source, target)
        except shutil.Error:  # a file went while it was copied
            pass
        else:
            if _listing(source) == before:
                return
        shutil.rmtree(target)
        time.sleep(0.01)
    raise AssertionError("the store's files never stood still")


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """File -> (bytes, time of its last change)."""
    found = {}
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            found[str(file)] = (file.stat().st_size, file.stat().st_mtime_ns)
    return found


def test_what_changes_while_a_commit_is_under_way_belongs_to_the_next(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", table_rows_min=1)
    with _stopped_builder(store):
        none = store.content_digest()
        _step(store, 1)
        store.put("outbox", b"here", b"first")
        first = store.content_digest()
        pending = store.commit_begin()
        assert not pending.done and store.content_digest() == first
        store.put("outbox", b"here", b"second")
        for step in range(2, 8):  # evicts rows of the commit under way and takes them back
            _step(store, step)
        assert store.stats().lookups_spilled > 0
        gone = np.array([key for key, _, _ in store.rows()][:20], np.uint64)
        store.remove(gone)
        assert not store.peek(gone, "shared")[1].any()
        second = store.content_digest()
        with pytest.raises(StoreMisuse, match="a commit is under way"):
            store.commit_begin()
        _copy_files(store.path, tmp_path / "before")
    assert pending.wait() == store.commit_id == 2
    assert store.content_digest() == second and store.get("outbox", b"here") == b"second"
    _copy_files(store.path, tmp_path / "after")
    store.commit()
    assert store.verify() == store.stats().rows_total
    store.close()
    for files, commit_id, digest in (
        ("before", 1, none),
        ("after", 2, first),
        ("store", 3, second),
    ):
        with open_store(tmp_path / files) as opened:
            assert opened.commit_id == commit_id
            opened.verify()
            assert opened.content_digest() == digest


def test_a_deletion_is_durable_and_a_row_made_again_is_new(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", table_rows_min=1) as store:
        for step in range(6):
            _step(store, step)
        store.commit()
        keys = np.array([key for key, _, _ in store.rows()], np.uint64)
        total = len(keys)
        assert store.remove(np.concatenate([keys[:30], keys[:30]])) == 30
        assert store.remove(keys[:30]) == 0
        again = store.lookup(keys[:10], now_ms=99_000)
        assert not again.found.any()
        store.prefetch(keys[20:40])
        store.commit()
        assert store.verify() == store.stats().rows_total == total - 20
    with open_store(tmp_path / "s") as store:
        assert store.peek(keys, "shared")[1].tolist() == [True] * 10 + [False] * 20 + [True] * (
            total - 30
        )
        created = {key: header.created_s for key, header, _ in store.rows()}
        assert created[int(keys[0])] == 99 and created[int(keys[-1])] < 99


def test_rows_read_ahead_and_then_deleted_stay_deleted(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", table_rows_min=1) as store:
        for step in range(6):
            _step(store, step)
        store.commit()
    with open_store(tmp_path / "s", table_rows_min=1) as store:
        keys = np.array([key for key, _, _ in store.rows()][:20], np.uint64)
        store.prefetch(keys)
        store.remove(keys)
        store.commit()
        assert not store.lookup(keys, now_ms=0).found.any()


def test_a_builder_that_dies_poisons_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", table_rows_min=1)
    with _stopped_builder(store):
        first = store.content_digest()
        _step(store, 1)
        pending = store.commit_begin()
        pid = store._commits.builder.child_pid
        assert pid is not None
        _wait_for_a_job(pid)  # one that died before is replaced, and nothing is lost
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(StorePoisoned, match="the table builder died: exit_status=`-9`"):
            pending.wait()
        with pytest.raises(StorePoisoned, match="restart after mending"):
            store.put("s", b"", b"")
    store.close()
    with open_store(tmp_path / "s") as store:
        assert store.commit_id == 1 and store.content_digest() == first


def _wait_for_a_job(pid: int) -> None:
    """Until something lies in the pipe that the stopped child would read."""
    waiting = array.array("i", [0])
    with Path(f"/proc/{pid}/fd/0").open("rb") as pipe:
        while not waiting[0]:
            fcntl.ioctl(pipe, termios.FIONREAD, waiting)
            time.sleep(0.001)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Children that start in milliseconds, from a server that has imported the store."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.store_writer_warm"])
    return context


def _digests(path: Path, upto: int) -> dict[int, dict[str, str]]:
    """Of an uninterrupted run, by commit."""
    with open_store(path) as store:
        digests = {0: store.content_digest()}
        while store.commit_id < upto:
            number = run_commit(store)
            digests[number] = store.content_digest()
    return digests


@pytest.mark.slow
@pytest.mark.kill
def test_kill_9_at_any_moment_of_a_commit_beside_training(tmp_path: Path, processes: Any) -> None:
    """Two-sided: what `wait` promised is there; of what only began, all of it or nothing."""
    path, moments = tmp_path / "store", random.Random(SEED)
    durable, seen = 0, []
    for kill in range(KILLS):
        ours, theirs = processes.Pipe()
        child = processes.Process(target=write_beside_commits_until_killed, args=(path, theirs))
        child.start()
        theirs.close()
        assert ours.recv() == (durable, "durable"), kill
        began = durable
        for _ in range(moments.randrange(1, 7)):  # the first tells that a commit has begun
            number, what = ours.recv()
            began, durable = max(began, number), max(durable, number * (what == "durable"))
        time.sleep(moments.choice((0.0, 0.003, 0.03)) * moments.random())
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        try:
            while True:
                number, what = ours.recv()
                began, durable = max(began, number), max(durable, number * (what == "durable"))
        except (EOFError, ConnectionResetError):
            ours.close()
        with open_store(path) as store:
            assert durable <= store.commit_id <= max(began, durable) + 1, (kill, SEED)
            seen.append((store.commit_id, store.content_digest(), store.commit_id == durable))
            store.verify()
            durable = store.commit_id
    truth = _digests(tmp_path / "truth", durable)
    assert all(digest == truth[number] for number, digest, _ in seen), SEED
    assert durable > 0, "the kills came too early to prove anything"


@pytest.mark.slow
def test_a_table_that_the_disk_refuses_poisons_the_store(tmp_path: Path, processes: Any) -> None:
    ours, theirs = processes.Pipe()
    child = processes.Process(target=until_poisoned, args=(tmp_path / "s", theirs, 9_000, 1))
    child.start()
    last, refusals = ours.recv()
    child.join()
    assert len(set(refusals)) == 1 and len(refusals) == 4
    assert "File too large" in refusals[0] and "restart after mending" in refusals[0]
    with open_store(tmp_path / "s") as store:
        assert store.commit_id == last
        store.verify()
        run_commit(store)
        assert store.content_digest() == _digests(tmp_path / "truth", last + 1)[last + 1]


def test_the_builder_ends_with_its_parent(tmp_path: Path, processes: Any) -> None:
    ours, theirs = processes.Pipe()
    child = processes.Process(target=write_beside_commits_until_killed, args=(tmp_path, theirs))
    child.start()
    theirs.close()
    while ours.recv()[0] < 2:
        pass
    builders = [
        int(task.name)
        for task in Path("/proc").iterdir()
        if task.name.isdigit() and _is_builder_of(task, child.pid)
    ]
    assert len(builders) == 1
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    ends = time.monotonic() + 60
    while Path(f"/proc/{builders[0]}").exists() and time.monotonic() < ends:
        time.sleep(0.01)
    assert not Path(f"/proc/{builders[0]}").exists()


def _is_builder_of(task: Path, parent: int) -> bool:
    try:
        words = (task / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"embedding_store.table_writer" in words and str(parent).encode() in words

"""Killed, refused by the disk, damaged on disk: a whole commit, or an error that says why not.

`tests/knobs.py` says how to run more of it.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_store.errors import StoreCorrupt, StoreLocked
from embedding_store.rocks import Rocks
from tests.knobs import SEED, kills
from tests.store_writer import hold, open_store, run_commit, write_until_killed
from tests.store_writer import write_until_poisoned as until_poisoned

KILLS = kills(8, 100)
pytestmark = pytest.mark.slow


class Truth:
    """Digests of an uninterrupted run, by commit; runs as far as it is asked."""

    def __init__(self, path: Path, *, keep_every: int) -> None:
        """Asked in rising order, or for a commit up to `keep_every`."""
        self._store, self._keep_every = open_store(path), keep_every
        self._digests = {0: self._store.content_digest()}

    def after(self, commit_id: int) -> dict[str, str]:
        while self._store.commit_id < commit_id:
            newest = run_commit(self._store)
            if newest == commit_id or newest <= self._keep_every:
                self._digests[newest] = self._store.content_digest()
        return self._digests[commit_id]

    def close(self) -> None:
        self._store.close()


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Truth]:
    with contextlib.closing(
        Truth(tmp_path_factory.mktemp("truth") / "store", keep_every=80)
    ) as built:
        yield built


@pytest.fixture(scope="module")
def processes() -> Any:
    """Children that start in milliseconds, from a server that has imported the store."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.store_writer_warm"])
    return context


def _start(processes: Any, target: Any, *arguments: Any) -> tuple[Any, Connection]:
    ours, theirs = processes.Pipe()
    child = processes.Process(
        target=target, args=(arguments[0], theirs, *arguments[1:]), daemon=True
    )
    child.start()
    theirs.close()
    return child, ours


def _newest_told(pipe: Connection, newest: int) -> int:
    with contextlib.suppress(EOFError, ConnectionResetError):
        while pipe.poll(0):
            newest = pipe.recv()
    return newest


@pytest.mark.kill
def test_kill_9_during_commits_leaves_a_whole_commit(tmp_path: Path, processes: Any) -> None:
    """Two-sided: every commit that was promised is there, and nothing beyond the one under way."""
    path, moments, promised = tmp_path / "store", random.Random(SEED), 0
    truth = Truth(tmp_path / "truth", keep_every=0)
    for kill in range(KILLS):
        child, pipe = _start(processes, write_until_killed, path)
        assert pipe.recv() == promised, kill
        for _ in range(moments.randrange(1, 4)):
            started_at = pipe.recv()
        time.sleep(moments.uniform(0, 0.1))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        promised = _newest_told(pipe, started_at)
        pipe.close()
        with open_store(path) as store:
            assert promised <= store.commit_id <= promised + 1, (kill, SEED)
            assert store.content_digest() == truth.after(store.commit_id), (kill, SEED)
            store.verify()
            promised = store.commit_id
    truth.close()
    assert promised > KILLS, "the kills came too early to prove anything"


@pytest.mark.parametrize("file_bytes_max", [150_000, 1_000_003])
def test_a_refused_write_poisons_the_store_and_leaves_the_last_commit(
    tmp_path: Path, processes: Any, truth: Truth, file_bytes_max: int
) -> None:
    child, pipe = _start(processes, until_poisoned, tmp_path / "store", file_bytes_max)
    last, refusals = pipe.recv()
    child.join()
    assert len(refusals) == 4 and len(set(refusals)) == 1
    assert "File too large" in refusals[0] and "restart after mending" in refusals[0]
    assert last > 3
    _assert_good_and_goes_on(tmp_path / "store", last, truth)


def _assert_good_and_goes_on(path: Path, last: int, truth: Truth) -> None:
    with open_store(path) as store:
        assert last <= store.commit_id <= last + 1
        assert store.content_digest() == truth.after(store.commit_id)
        store.verify()
        run_commit(store)
        assert store.content_digest() == truth.after(store.commit_id)


FULL_DISK = """
import sys, subprocess
from pathlib import Path
from tests.store_writer import open_store, run_commit, write_until_poisoned
class Pipe:
    def send(self, told): self.told = told
disk, keep, pipe = Path(sys.argv[1]), Path(sys.argv[2]), Pipe()
write_until_poisoned(disk / "store", pipe, 0)
subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
with open_store(disk / "store") as store:
    store.verify()
    reopened = store.commit_id
    run_commit(store)
    store.checkpoint(disk / "copy")
import shutil
shutil.copytree(disk / "copy", keep)
print(pipe.told[0], reopened, pipe.told[1][0])
"""


def test_a_full_disk_is_named_and_the_store_goes_on_when_there_is_room(
    tmp_path: Path, truth: Truth
) -> None:
    """A real file system of 3 MB, mounted in a namespace of the child's own."""
    disk, keep = tmp_path / "disk", tmp_path / "keep"
    disk.mkdir()
    script = (
        f'mount -t tmpfs -o size=3m tmpfs {disk} && exec {sys.executable} -c "$0" {disk} {keep}'
    )
    ran = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, FULL_DISK],
        check=False,
        capture_output=True,
        text=True,
        timeout=250,
        cwd=Path(__file__).parent.parent,
    )
    if "unshare:" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip(f"no private mounts here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    last, reopened, refusal = ran.stdout.strip().split(" ", 2)
    assert "No space left on device" in refusal
    assert int(last) > 3 and int(last) <= int(reopened) <= int(last) + 1
    with open_store(keep) as store:
        assert store.commit_id == int(reopened) + 1
        assert store.content_digest() == truth.after(store.commit_id)


def test_a_second_opener_is_refused_by_owner_and_pid(tmp_path: Path, processes: Any) -> None:
    child, pipe = _start(processes, hold, tmp_path / "store")
    pid = pipe.recv()
    with pytest.raises(StoreLocked, match=rf"owner=`store_writer` pid=`{pid}`"):
        open_store(tmp_path / "store")
    os.kill(pid, signal.SIGKILL)  # the lock dies with its process, whatever the file says
    child.join()
    with open_store(tmp_path / "store"):
        with pytest.raises(StoreLocked, match=rf"pid=`{os.getpid()}`"):
            open_store(tmp_path / "store")
        (tmp_path / "store" / "owner.lock").unlink()  # RocksDB's own lock stands behind
        with pytest.raises(StoreLocked, match="RocksDB"):
            open_store(tmp_path / "store")


def _six_commits(at: Path, *, in_tables: bool) -> Path:
    """A store's files as a crash would leave them: in the log alone, or in tables."""
    with open_store(at / "store") as store:
        for _ in range(6):
            run_commit(store)
        if in_tables:
            store.checkpoint(at / "files")
        else:
            shutil.copytree(at / "store", at / "files")
    return at / "files"


@pytest.mark.parametrize("kind", ["*.log", "*.sst", "MANIFEST-*", "CURRENT", "store.json"])
def test_a_flipped_bit_is_found(tmp_path: Path, truth: Truth, kind: str) -> None:
    """In the log of commits, a table, the list of tables: refused, never silently other."""
    files, found, harmless = _six_commits(tmp_path, in_tables=kind != "*.log"), 0, 0
    moments = random.Random(SEED)
    for trial in range(12):
        copy = tmp_path / f"flip{trial}"
        shutil.copytree(files, copy)
        file = max(copy.rglob(kind), key=lambda f: f.stat().st_size)
        data = bytearray(file.read_bytes())
        data[moments.randrange(len(data) * 3 // 4)] ^= 1 << moments.randrange(8)
        file.write_bytes(data)
        try:
            with open_store(copy) as store:
                store.verify()
                assert store.content_digest() == truth.after(6), f"silently other: trial {trial}"
                harmless += 1
        except StoreCorrupt:
            found += 1
    assert found >= 4, f"{found} found, {harmless} changed nothing that is read"


def test_verify_finds_a_lost_a_swapped_and_a_cut_row(tmp_path: Path) -> None:
    """Faults that no block checksum can see: RocksDB itself was told so."""
    files = _six_commits(tmp_path, in_tables=True)
    rocks = Rocks(files / "rocks")
    (first, one), (second, two) = itertools.islice(rocks.scan(b"r"), 2)
    for writes, told in (
        ([(first, None)], "counted another number of rows"),
        ([(first, two)], f"names another key than its own: key=`0x{first[1:].hex()}`"),
        ([(first, one), (second, two[:-8])], f"wrong size: key=`0x{second[1:].hex()}`"),
    ):
        rocks.write(writes)
        rocks.close()
        with open_store(files) as store, pytest.raises(StoreCorrupt, match=told):
            store.verify()
        rocks = Rocks(files / "rocks")
    rocks.close()
    with open_store(files) as store, pytest.raises(StoreCorrupt, match="wrong size"):
        store.lookup(np.array([int.from_bytes(second[1:], "big")], np.uint64), now_ms=0)


@pytest.mark.parametrize("kind", ["*.sst", "MANIFEST-*", "CURRENT", "store.json"])
def test_a_truncated_file_is_found(tmp_path: Path, kind: str) -> None:
    files = _six_commits(tmp_path, in_tables=True)
    file = max(files.rglob(kind), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(StoreCorrupt), open_store(files) as store:
        store.verify()


def test_a_torn_tail_of_the_log_costs_only_what_was_torn(tmp_path: Path, truth: Truth) -> None:
    """What a kill in the midst of a write leaves: the record under way is dropped, no other."""
    path = tmp_path / "store"
    with open_store(path) as store:
        ends = [0]
        for _ in range(4):
            run_commit(store)
            ends.append(_log(path).stat().st_size)
        shutil.copytree(path, tmp_path / "copy")
    data = _log(tmp_path / "copy").read_bytes()
    for cut in (ends[4] - 1, ends[3] + 9, ends[3] + 1, ends[2] + 8):
        torn = tmp_path / f"torn{cut}"
        shutil.copytree(tmp_path / "copy", torn)
        _log(torn).write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends) - 1
        with open_store(torn) as store:
            assert store.commit_id == whole
            assert store.content_digest() == truth.after(whole)


def _log(path: Path) -> Path:
    return max((path / "rocks").glob("*.log"))

"""The process that the crash tests kill: scripted steps, a commit every few, told over a pipe."""

from __future__ import annotations

import os
import resource
from multiprocessing.connection import Connection
from pathlib import Path

from embedding_store.errors import StorePoisoned
from embedding_store.store import EmbeddingStore
from tests.store_oracle import LAYOUT, scripted_step

STEPS_PER_COMMIT = 3
CACHE_ROWS = 70
IDS, UNIVERSE = 60, 1000


def open_store(path: Path, *, table_rows_min: int = 8192) -> EmbeddingStore:
    return EmbeddingStore.open(
        path,
        LAYOUT,
        cache_rows_max=2 * CACHE_ROWS,
        owner="store_writer",
        table_rows_min=table_rows_min,
    )


def run_commit(store: EmbeddingStore) -> int:
    """The steps of the commit after the store's newest one, and that commit."""
    for step in range(STEPS_PER_COMMIT):
        number = store.commit_id * STEPS_PER_COMMIT + step
        scripted_step(store, number, ids=IDS, universe=UNIVERSE)
    return store.commit()


def write_until_killed(path: Path, pipe: Connection) -> None:
    """Tells each commit's id after `commit` returned: a promise that it survives."""
    with open_store(path) as store:
        pipe.send(store.commit_id)
        while True:
            pipe.send(run_commit(store))


def write_beside_commits_until_killed(path: Path, pipe: Connection) -> None:
    """The same steps, but each commit is a table, and is written beside the steps of the next.

    Tells (id, "began") when training may go on and (id, "durable") after `wait`.
    """
    with open_store(path, table_rows_min=1) as store:
        pipe.send((store.commit_id, "durable"))
        number, under_way = store.commit_id, None
        while True:
            for step in range(STEPS_PER_COMMIT):
                scripted_step(store, number * STEPS_PER_COMMIT + step, ids=IDS, universe=UNIVERSE)
            if under_way is not None:
                pipe.send((under_way.wait(), "durable"))
            under_way = store.commit_begin()
            number = under_way.commit_id
            pipe.send((number, "began"))


def hold(path: Path, pipe: Connection) -> None:
    """Open the store and wait to be told to end."""
    with open_store(path):
        pipe.send(os.getpid())
        pipe.recv()


def write_until_poisoned(
    path: Path, pipe: Connection, file_bytes_max: int, table_rows_min: int = 8192
) -> None:
    """Tells (newest commit, the refusals' texts); no file may grow past `file_bytes_max`."""
    if file_bytes_max:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, hard))
    store = open_store(path, table_rows_min=table_rows_min)
    refusals = []
    try:
        while True:
            run_commit(store)
    except StorePoisoned as error:
        refusals.append(str(error))
    for call in (store.commit, lambda: scripted_step(store, 0), lambda: store.put("s", b"", b"")):
        try:
            call()
        except StorePoisoned as error:
            refusals.append(str(error))
    last = store.commit_id
    store.close()
    pipe.send((last, refusals))

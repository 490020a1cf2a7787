"""The process that the kill tests end while it commits, evicts, takes, copies, prunes, restores.

It says what it is about to do, so that a kill can be aimed at it, and what is done: a promise.
"""

from __future__ import annotations

import contextlib
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

from embedding_store.checkpoints import (
    Retention,
    complete,
    next_name,
    prune,
    remove_unfinished,
)
from embedding_store.copies import copy_checkpoint
from embedding_store.restore import restore
from tests.store_writer import open_store, run_commit

PHASES = ("commit", "table", "take", "complete", "copy", "prune", "restore")
RETENTION = Retention(kept=2)


def work_until_killed(at: Path, pipe: Connection) -> None:
    """In a circle: two commits, a checkpoint of them, its copy; then, sometimes, a restore.

    Sends ("doing", phase, commit id) and ("done", phase, commit id).
    """
    for folder in ("links", "copies"):
        (at / folder).mkdir(exist_ok=True)
        remove_unfinished(at / folder)
    for n in range(10**9):
        with contextlib.ExitStack() as opened:
            store = opened.enter_context(open_store(at / "store", table_rows_min=(n % 2) or 8192))
            pipe.send(("done", "open", store.commit_id))
            for _ in range(3):
                pipe.send(("doing", "table" if n % 2 else "commit", store.commit_id))
                run_commit(store)
                pipe.send(("done", "commit", store.commit_id))
                name = next_name(store.commit_id, at / "links", at / "copies")
                pipe.send(("doing", "take", store.commit_id))
                store.checkpoint(at / "links" / ".taking-it")
                pipe.send(("doing", "complete", store.commit_id))
                taken = complete(
                    at / "links" / ".taking-it",
                    name,
                    commit_id=store.commit_id,
                    created_ms=0,
                    ranges=store.table_ranges(),
                    about={},
                )
                pipe.send(("done", "links", store.commit_id))
                pipe.send(("doing", "copy", store.commit_id))
                copy_checkpoint(taken, at / "copies")
                pipe.send(("done", "copies", store.commit_id))
                pipe.send(("doing", "prune", store.commit_id))
                for folder in ("links", "copies"):
                    prune(at / folder, RETENTION)
        pipe.send(("doing", "restore", store.commit_id))
        restore(at / "copies", at / "store")
        for old in at.glob("store.replaced-*"):
            shutil.rmtree(old)

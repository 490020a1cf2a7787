"""Opens a store under the layout that it was written with: to look into it, not to train."""

from __future__ import annotations

from pathlib import Path

from embedding_store.audit import stored_layout
from embedding_store.errors import StoreUnreadable
from embedding_store.owner import OwnerLock
from embedding_store.rocks import Rocks
from embedding_store.store import DATABASE, EmbeddingStore


def open_as_stored(path: Path, *, cache_rows_max: int, owner: str) -> EmbeddingStore:
    """An existing store, rates at their defaults. Raises as `EmbeddingStore.open` does, and
    StoreUnreadable if there is none."""
    path = Path(path)
    if not (path / DATABASE / "CURRENT").is_file():
        raise StoreUnreadable(f"no store here: path=`{path}`")
    lock = OwnerLock(path, owner)
    try:
        rocks = Rocks(path / DATABASE)
        try:
            layout = stored_layout(rocks, path)
        finally:
            rocks.close()
    finally:
        lock.release()
    return EmbeddingStore.open(path, layout, cache_rows_max=cache_rows_max, owner=owner)

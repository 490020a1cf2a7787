"""How a trainer opens its store: everything that the config says of it, in one place."""

from __future__ import annotations

from pathlib import Path

from embedding_store.policies import admission_filter
from embedding_store.store import EmbeddingStore
from settings.config import Config
from trainer.step import row_layout


def open_store(config: Config, path: Path, *, owner: str) -> EmbeddingStore:
    """The store in directory `path` with the layout of `config`'s model, made where there is none.

    `owner` is who others are told holds it. Raises what `EmbeddingStore.open` does.
    """
    return EmbeddingStore.open(
        path,
        row_layout(config),
        cache_rows_max=config.store.cache_rows_max,
        admission=admission_filter(config.admission),
        reads=config.store.reads,
        eviction=config.store.eviction,
        device="cuda" if config.trainer.device == "cuda" else "memory",
        owner=owner,
    )

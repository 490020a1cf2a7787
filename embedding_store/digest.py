"""One number for everything in a store, so that two runs can be compared."""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

from embedding_store.state import StagedState


def content_digest(rows: Iterable[tuple[int, bytes]], state: StagedState) -> dict[str, str]:
    """XXH3-128 of all `rows` ("rows") and of each space of state ("state/NAME")."""
    digests = {"rows": xxhash.xxh3_128()}
    for _, data in rows:
        digests["rows"].update(data)
    for space in state.spaces():
        digest = digests[f"state/{space}"] = xxhash.xxh3_128()
        for name, value in state.scan(space):
            digest.update(b"%d:%d:" % (len(name), len(value)) + name + value)
    return {name: digest.hexdigest() for name, digest in digests.items()}

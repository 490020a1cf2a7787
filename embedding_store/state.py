"""Small durable records in named spaces, which change only together with the rows.

A change is staged in memory, visible here at once, and written by the store's next commit; a crash
before that leaves the record as the last commit had it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from embedding_store.errors import StoreMisuse
from embedding_store.rocks import Rocks, Write

STATE_PREFIX: Final = b"s"


class StagedState:
    """The records on disk overlaid with what the next commit will write."""

    def __init__(self, rocks: Rocks) -> None:
        self._rocks = rocks
        self._staged: dict[bytes, bytes | None] = {}
        self._pending: dict[bytes, bytes | None] = {}
        """Of the commit under way; a staged change hides it."""

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of `keys`, None where absent."""
        names = [_name(space, key) for key in keys]
        changed = (self._pending | self._staged) if self._pending else self._staged
        on_disk = sorted({name for name in names if name not in changed})
        known = dict(zip(on_disk, self._rocks.get_many(on_disk), strict=True)) if on_disk else {}
        return [changed[n] if n in changed else known[n] for n in names]

    def put(self, space: str, key: bytes, value: bytes) -> None:
        self._staged[_name(space, key)] = bytes(value)

    def put_many(self, space: str, keys: Iterable[bytes], values: Iterable[bytes]) -> None:
        prefix = _name(space, b"")
        self._staged.update(zip([prefix + key for key in keys], values, strict=True))

    def delete(self, space: str, key: bytes) -> None:
        """Absent is fine: what counts is that it is absent after the commit."""
        self._staged[_name(space, key)] = None

    def scan(self, space: str) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in order of key, staged changes included, as of the call."""
        prefix = _name(space, b"")
        overlaid = self._pending | self._staged
        staged = {n: v for n, v in overlaid.items() if n.startswith(prefix)}
        pending = iter(sorted(staged))
        upcoming = next(pending, None)
        for name, value in self._rocks.scan(prefix):
            while upcoming is not None and upcoming < name:
                changed = staged[upcoming]
                if changed is not None:
                    yield upcoming[len(prefix) :], changed
                upcoming = next(pending, None)
            if upcoming == name:
                continue  # the staged value, or its deletion, comes in its turn
            yield name[len(prefix) :], value
        while upcoming is not None:
            changed = staged[upcoming]
            if changed is not None:
                yield upcoming[len(prefix) :], changed
            upcoming = next(pending, None)

    def spaces(self) -> list[str]:
        """Names of all spaces with a record, sorted."""
        changed = self._pending | self._staged
        names = {name for name, value in changed.items() if value is not None}
        names |= {n for n, _ in self._rocks.scan(STATE_PREFIX) if changed.get(n, b"") is not None}
        return sorted({name[1 : name.index(b"\0")].decode() for name in names})

    def commit_begins(self) -> list[Write]:
        """What the commit that begins has to write; later changes belong to the next."""
        assert not self._pending, "two commits under way"
        self._pending, self._staged = self._staged, {}
        return list(self._pending.items())

    def committed(self) -> None:
        """The pending changes are on disk now."""
        self._pending = {}

    def __len__(self) -> int:
        return len(self._staged)


def _name(space: str, key: bytes) -> bytes:
    if not space or "\0" in space:
        raise StoreMisuse(f"a space needs a name without NUL: space=`{space!r}`")
    return STATE_PREFIX + space.encode() + b"\0" + key

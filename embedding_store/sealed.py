"""Small JSON files that carry their own checksum and are replaced whole.

    {"format": 1, ..., "xxh3": "<XXH3-64 of these bytes without this last entry>"}

A file that is not, byte for byte, what its content would be written as is damaged: so no flipped
bit passes, not even one in a space.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import xxhash

from embedding_store.errors import StoreCorrupt, StoreUnreadable

_SEAL: Final = "xxh3"


def write_sealed(file: Path, content: dict[str, Any]) -> None:
    """Replace `file`; returns after fsync of it and its directory. Raises StoreUnreadable."""
    writing = file.with_name(f"{file.name}.writing")
    try:
        with writing.open("wb") as opened:
            opened.write(_sealed(content))
            opened.flush()
            os.fsync(opened.fileno())
        writing.replace(file)
        sync_directory(file.parent)
    except OSError as error:
        raise StoreUnreadable(f"cannot write: path=`{file}` error=`{error}`") from error


def read_sealed(file: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, StoreUnreadable, or StoreCorrupt for anything but whole content."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreUnreadable(f"cannot read: path=`{file}` error=`{error}`") from error
    try:
        content: dict[str, Any] = json.loads(data)
        del content[_SEAL]
        whole = _sealed(content) == data
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"not what the store writes there: path=`{file}`") from error
    if not whole:
        raise StoreCorrupt(f"fails its checksum: path=`{file}`")
    return content


def sync_directory(directory: Path) -> None:
    """So that a new name in it survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sealed(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    seal = json.dumps({_SEAL: xxhash.xxh3_64_hexdigest(text)}, separators=(",", ":")).encode()
    return text[:-1] + (b"," if content else b"") + seal[1:]

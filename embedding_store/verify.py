"""Checks the files of a closed store, or of a checkpoint, one by one: which is damaged, and which
keys it held.

Nothing is opened through RocksDB and nothing is written, so a checkpoint can be checked beside the
store that it was taken from. Every kind of file is covered: tables block by block, logs and
manifests record by record, CURRENT by its form, what RocksDB writes without a checksum by
`store.json`, our own JSON by its seal, and in a checkpoint every file once more as a whole.

What no file shows is left to `EmbeddingStore.verify`: rows that contradict the commit record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import xxhash

from embedding_store.audit import PLAIN_FILES, REACHED_FILE
from embedding_store.errors import StoreCorrupt, StoreUnreadable
from embedding_store.log_file import check_log
from embedding_store.rocks import ROW_PREFIX
from embedding_store.sealed import read_sealed
from embedding_store.table_file import TableFault, check_table

CHECKPOINT_FILE: Final = "checkpoint.json"
CHECKPOINT_NAME: Final = re.compile(r"checkpoint-(\d{8,})-commit-(\d+)")
"""Of a whole checkpoint's directory: its number, its commit."""
_NO_DATA: Final = re.compile(
    r"(rocks/)?(LOG(\.old\.\d+)?|LOCK|owner\.lock)|.*\.(dbtmp|writing)|building/.*"
)
"""A table that is being built belongs to no commit until RocksDB has taken it in."""
_CURRENT: Final = re.compile(rb"(MANIFEST-\d{6,})\n")
_READ_BYTES: Final = 1 << 20


class FileFault(msgspec.Struct, frozen=True, kw_only=True):
    """One damaged, missing or foreign file."""

    file: str
    """Path below the store's directory."""
    reason: str
    keys: str
    """The range of keys that it held: of the damaged block where that can be told."""

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}; keys: {self.keys}"


class FilesVerified(msgspec.Struct, frozen=True, kw_only=True):
    """`unchecked` are files that nothing vouches for yet, by name: a store that was killed has not
    noted its newest options, a log may end inside a record that never counted."""

    path: str
    files: int
    bytes: int
    faults: list[FileFault]
    unchecked: list[str]


@dataclass(slots=True)
class _Findings:
    faults: list[FileFault] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def fault(self, file: str, reason: str, keys: str = "all keys") -> None:
        if all(known.file != file for known in self.faults):
            self.faults.append(FileFault(file=file, reason=reason, keys=keys))


def verify_files(directory: Path) -> FilesVerified:
    """Read every file below `directory`; the faults are in the result, none is raised.

    Raises StoreUnreadable if the directory or a file cannot be read at all. A store that a process
    has open changes under the reader: check a checkpoint of it instead.
    """
    found, size, names = _Findings(), 0, []
    try:
        files = sorted(f for f in directory.rglob("*") if f.is_file())
        if not files:
            raise StoreUnreadable(f"no store and no checkpoint here: path=`{directory}`")
        listed = _listed(directory, found)
        plain = _plain(directory, found)
        for file in files:
            name = str(file.relative_to(directory))
            if name == CHECKPOINT_FILE or _NO_DATA.fullmatch(name):
                continue
            names.append(name)
            size += file.stat().st_size
            if name != REACHED_FILE:  # read above
                _check(directory, file, name, plain, found)
            if listed is not None:
                _check_listed(file, name, listed.get(name), found)
    except OSError as error:
        raise StoreUnreadable(f"cannot read: path=`{directory}` error=`{error}`") from error
    for name, told in (listed or {}).items():
        if name not in names:
            found.fault(name, "missing", _told_keys(told))
    for name in plain:  # options of earlier runs are deleted by RocksDB itself
        if name not in names and not name.startswith("rocks/OPTIONS-"):
            found.fault(name, "missing")
    if listed is None and not any(name.startswith("rocks/MANIFEST-") for name in names):
        found.fault("rocks/MANIFEST-*", "missing")
    return FilesVerified(
        path=str(directory),
        files=len(names),
        bytes=size,
        faults=sorted(found.faults, key=lambda fault: fault.file),
        unchecked=found.unchecked,
    )


def digest_file(file: Path) -> str:
    """XXH3-128 of the whole content. Raises OSError."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while part := opened.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _listed(directory: Path, found: _Findings) -> dict[str, dict[str, Any]] | None:
    """The files that the checkpoint's own list names; None for a store, which has none."""
    try:
        files: dict[str, dict[str, Any]] = read_sealed(directory / CHECKPOINT_FILE)["files"]
    except FileNotFoundError:
        if CHECKPOINT_NAME.fullmatch(directory.name):
            found.fault(CHECKPOINT_FILE, "missing")
        return None
    except (StoreCorrupt, KeyError) as error:
        found.fault(CHECKPOINT_FILE, str(error))
        return None
    return files


def _plain(directory: Path, found: _Findings) -> dict[str, str]:
    try:
        plain: dict[str, str] = read_sealed(directory / REACHED_FILE)["plain"]
    except FileNotFoundError:
        found.fault(REACHED_FILE, "missing")
        return {}
    except (StoreCorrupt, KeyError) as error:
        found.fault(REACHED_FILE, str(error))
        return {}
    return plain


def _check(directory: Path, file: Path, name: str, plain: dict[str, str], found: _Findings) -> None:
    """One file by its own kind."""
    if name.endswith(".sst"):
        _check_table(file, name, found)
    elif name.endswith(".log") or file.name.startswith("MANIFEST-"):
        check = check_log(file)
        if check.fault is not None:
            where = f"at byte {check.fault.offset} of {file.stat().st_size}"
            found.fault(name, f"{check.fault.reason} {where}")
        elif check.torn:
            found.unchecked.append(f"{name}: ends inside a record, as a crash leaves it")
    elif file.name == "CURRENT":
        match = _CURRENT.fullmatch(file.read_bytes())
        if match is None:
            found.fault(name, "does not name a manifest")
        elif not file.with_name(match.group(1).decode()).is_file():
            found.fault(name, f"names a manifest that is not there: {match.group(1).decode()}")
    elif any(file.relative_to(directory).match(pattern) for pattern in PLAIN_FILES):
        if name not in plain:
            found.unchecked.append(f"{name}: not noted yet")
        elif plain[name] != xxhash.xxh3_64_hexdigest(file.read_bytes()):
            found.fault(name, "is not what was noted in store.json")
    else:
        found.unchecked.append(f"{name}: not a file of the store")


def _check_table(file: Path, name: str, found: _Findings) -> None:
    check = check_table(file)
    if check.faults:
        first = check.faults[0]
        more = f" and {len(check.faults) - 1} more" if len(check.faults) > 1 else ""
        where = f"at byte {first.offset} of {file.stat().st_size}{more}"
        found.fault(name, f"{first.reason} {where}", _ranges(check.faults))
    elif not check.known:
        found.unchecked.append(f"{name}: a table of another format, read only by RocksDB")


def _check_listed(file: Path, name: str, told: dict[str, Any] | None, found: _Findings) -> None:
    """One file of a checkpoint against the list."""
    if told is None:
        found.fault(name, "is not in the checkpoint's list", "none")
    elif file.stat().st_size != told["bytes"]:
        reason = f"has {file.stat().st_size} bytes, expected {told['bytes']}"
        found.faults = [fault for fault in found.faults if fault.file != name]
        found.fault(name, reason, _told_keys(told))
    elif digest_file(file) != told["xxh3"]:
        found.fault(name, "is not what was written", _told_keys(told))


def _told_keys(told: dict[str, Any] | None) -> str:
    if told is None or "first" not in told:
        return "all keys"
    return f"{_key(bytes.fromhex(told['first']))} to {_key(bytes.fromhex(told['last']))}"


def _ranges(faults: tuple[TableFault, ...]) -> str:
    return ", ".join(dict.fromkeys(_range(fault) for fault in faults))


def _range(fault: TableFault) -> str:
    if fault.until is None:
        return "all of the table's keys"
    first = "the table's first key" if fault.after is None else f"after {_key(fault.after)}"
    return f"{first} up to {_key(fault.until)}"


def _key(key: bytes) -> str:
    """Rows by their number, everything else by its name; separators may be shorter than keys."""
    if key[:1] == ROW_PREFIX:
        return "row 0x" + key[1:].ljust(8, bytes(1))[:8].hex()
    return repr(key)[1:]

"""What can go wrong in the store, by what the operator has to do about it.

StoreError
├── StoreLocked      another process has the store open: stop it, or use another path
├── LayoutMismatch   the rows on disk have another shape: fix the config or migrate the store
├── StoreCorrupt     what is on disk is not what was written: restore a checkpoint
├── StoreUnreadable  the disk or its permissions refuse: mend them, start again
├── StorePoisoned    a write failed: mend the named cause and restart the process
├── CacheTooSmall    two batches do not fit in the hot slab: raise cache_rows_max
└── StoreMisuse      our own caller is wrong (also a ValueError): a bug, report it
"""

from __future__ import annotations

from pathlib import Path


class StoreError(Exception):
    """Any failure of the embedding store."""


class StoreLocked(StoreError):
    """Another process (or another opener in this one) has the store open for writing.

    Operator action: stop the named process, or point this one at another path.
    """

    def __init__(self, path: Path, owner: str, pid: int) -> None:
        super().__init__(
            f"the store is already open: only one process may write to it: "
            f"path=`{path}` owner=`{owner}` pid=`{pid}`"
        )
        self.path, self.owner, self.pid = path, owner, pid


class LayoutMismatch(StoreError):
    """The rows on disk were written under another layout; nothing was changed.

    Operator action: restore the config that wrote them, or start an empty store at another path.
    """

    def __init__(self, stored: str, asked: str) -> None:
        super().__init__(
            f"the store was written with another row layout: stored=`{stored}` asked=`{asked}`"
        )
        self.stored, self.asked = stored, asked


class StoreCorrupt(StoreError):
    """Bytes on disk fail a checksum, or contradict each other.

    Operator action: keep the files for inspection and restore the newest good checkpoint.
    """


class StoreUnreadable(StoreError):
    """The operating system refused to open, read or write a file of the store.

    Inside `commit` and `checkpoint` it comes as the cause of StorePoisoned.
    Operator action: check the disk's space and permissions and the limit of open files.
    """


class StorePoisoned(StoreError):
    """A write failed earlier, so memory is ahead of the disk; every call but `close` is refused.

    What is on disk is a whole commit: the last one that was acknowledged, or, when only the
    acknowledgement failed, the one after it.
    Operator action: mend the cause (disk full, ...) and restart the process.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(f"a write failed, restart after mending its cause: cause=`{cause}`")
        self.cause = cause


class CacheTooSmall(StoreError):
    """One batch needs more than half of the hot slab, and two must fit in it.

    Operator action: raise `store.cache_rows_max`, or lower `trainer.batch_samples_max`.
    """

    def __init__(self, unique_keys: int, cache_rows_max: int) -> None:
        super().__init__(
            f"the hot slab must hold two batches: unique_keys=`{unique_keys}` "
            f"cache_rows_max=`{cache_rows_max}` expected at least `{2 * unique_keys}`"
        )
        self.unique_keys, self.cache_rows_max = unique_keys, cache_rows_max


class StoreMisuse(StoreError, ValueError):
    """A call that no correct caller makes: key 0, a stale lookup, a wrong shape, a closed store.

    Operator action: none; this is a bug of headwater, report it.
    """

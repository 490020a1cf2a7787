"""Two directories change names in one step: there is no moment at which a store is missing."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from embedding_store.errors import StoreUnreadable

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def exchange(one: Path, other: Path) -> None:
    """Swap their names, or raise StoreUnreadable and change nothing. Sync the parent yourself."""
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    code = -1
    if rename is not None:
        code = rename(
            _AT_FDCWD,
            os.fsencode(one),
            _AT_FDCWD,
            os.fsencode(other),
            ctypes.c_uint(_RENAME_EXCHANGE),
        )
    if code != 0:
        number = ctypes.get_errno() if rename is not None else errno.ENOSYS
        raise StoreUnreadable(
            f"this file system cannot exchange two directories: path=`{other}` "
            f"error=`{os.strerror(number)}`; the new store is in `{one}`: move it by hand"
        )

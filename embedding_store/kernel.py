"""`@kernel`: numba's `njit`, compiled once per state of all the store's kernels.

Numba keeps compiled code for as long as the file that defines a function is the same. Kernels here
inline functions and constants of other files: after an update that changed only those, the old code
would go on being used. So the place it is kept in is named after the sources of them all.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, Final

from numba import config, njit


def _sources_digest() -> str:
    """Of every file of this package that defines kernels, or what they inline."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        source = file.read_bytes()
        if b"import njit" in source or b"import kernel" in source or b"import intrinsic" in source:
            digest.update(file.name.encode() + b"\0" + source)
    return digest.hexdigest()


_CONFIG: Final = vars(config)
_KEPT: Final = _CONFIG["CACHE_DIR"] or str(Path(__file__).parent / "__pycache__")
_FOLDER: Final = str(Path(_KEPT) / f"kernels-{_sources_digest()}")


def kernel(function: Any = None, **options: Any) -> Any:
    """`njit(nogil=True, cache=True)` that counts no references; `options` are njit's. If the folder
    beside the sources (or `NUMBA_CACHE_DIR`) cannot be written, numba's own choice.

    So a kernel allocates nothing: it is given its arrays, which live as long as the call, and numba
    refuses to compile what would. Counting is two atomic instructions wherever an array gets a
    name, in inner loops, too, if its compiler does not see through them: they took half of an
    update's time. `_nrt` is numba's name for it; a version without it stops the import.
    """
    if function is None:
        return functools.partial(kernel, **options)
    before = _CONFIG["CACHE_DIR"]
    _CONFIG["CACHE_DIR"] = _FOLDER  # numba decides where when it decorates
    try:
        options |= {"nogil": True, "cache": True, "_nrt": False}
        return njit(**options)(function)
    finally:
        _CONFIG["CACHE_DIR"] = before

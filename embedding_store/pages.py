"""Large arrays on huge pages, where the kernel has them.

Random rows in a table of gigabytes miss the TLB at every access, and with pages of 4 KiB the page
table itself no longer fits in the caches: each miss then costs a memory access of its own. Pages
of 2 MiB need 512 times fewer entries.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

HUGE: Final = 2 << 20
SMALL: Final = 4 * HUGE
"""Below this a table is not worth rounding up."""


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """`np.zeros`, aligned to 2 MiB and advised to use huge pages if it is large.

    Memory is taken from the system as it is touched. Where huge pages are switched off
    (`/sys/kernel/mm/transparent_hugepage/enabled` = never) this is an ordinary array.
    """
    kind = np.dtype(dtype)
    count = math.prod(shape)
    if count * kind.itemsize < SMALL:
        return np.zeros(shape, kind)
    memory = mmap.mmap(
        -1, count * kind.itemsize + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    with contextlib.suppress(OSError, AttributeError):  # a kernel without them, or not Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    return np.frombuffer(memory, kind, count, offset=-start % HUGE).reshape(shape)

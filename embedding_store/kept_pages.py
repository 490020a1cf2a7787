"""Makes this thread's `posix_fadvise` do nothing: what it writes stays in the page cache.

RocksDB's writer of table files tells the kernel to drop what it has written, and has no option
against it. A commit's rows have just left the slab and are the likeliest to be read: each would
come back by a read of the disk. A seccomp filter answers the call instead of the kernel, for good,
which suits a process that does nothing but write tables.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_CALLS: Final = {"x86_64": (0xC000003E, 221), "aarch64": (0xC00000B7, 223)}
"""Machine -> (the kernel's number for it, that of fadvise64 there)."""
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _MACHINE = 0, 4
"""Offsets in what a filter is given of a call."""
_ALLOW: Final = 0x7FFF0000
_ANSWER_ZERO: Final = 0x00050000


def keep_written_pages() -> bool:
    """For the calling thread and those it starts. False if this kernel takes no such filter: then
    what is written is as right, and read slower."""
    known = _CALLS.get(os.uname().machine)
    if known is None:
        return False
    machine, fadvise = known
    steps = (
        (_LOAD, 0, 0, _MACHINE),
        (_JUMP_IF_EQUAL, 0, 3, machine),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 0, 1, fadvise),
        (_RETURN, 0, 0, _ANSWER_ZERO),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    system = ctypes.CDLL(None)
    taken: bool = (
        system.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and system.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program) == 0
    )
    return taken

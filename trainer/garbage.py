"""Python's cycle collector in processes that hold many objects and make hardly any cycles."""

from __future__ import annotations

import gc
from typing import Final

_NEW_OBJECTS_MAX: Final = 100_000
"""Containers made and not let go of before the collector looks: a batch of samples is fewer."""


def collect_rarely() -> None:
    """Call once everything long-lived is there: the collector passes over it from now on.

    By default it looks after every 700 containers made, some 35 times while a batch of 4,096
    samples is decoded, and finds nothing: they are let go of by count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS_MAX)

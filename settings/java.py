"""What every JVM that Headwater starts is given: the broker's and the join's."""

from __future__ import annotations

import os
import shlex

JAVA_OPTIONS = "HEADWATER_JAVA_OPTIONS"
"""Environment variable: further options of the JVMs, as in a shell. They come last, and so win."""


def java_options(*own: str) -> list[str]:
    """`own`, what all JVMs have, then $HEADWATER_JAVA_OPTIONS."""
    return [
        *own,
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
        *shlex.split(os.environ.get(JAVA_OPTIONS, "")),
    ]

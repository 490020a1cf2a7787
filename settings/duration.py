"""Durations as people write them in the config ("24h", "500ms"), held as integer milliseconds."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

_UNIT_MS = {"ms": 1, "s": 1000, "min": 60_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)\s*")


def parse_duration_ms(value: object) -> int:
    """Milliseconds in `value`, e.g. "500ms", "1.5s", "10min", "24h", "7d".

    Raises ValueError that says what was expected and what came. A bare number is refused: its unit
    would be a guess.
    """
    if isinstance(value, str):
        match = _PATTERN.fullmatch(value)
        if match:
            return round(float(match.group(1)) * _UNIT_MS[match.group(2)])
    raise ValueError(
        f"expected a duration such as '500ms', '10s', '10min', '24h' or '7d', got {value!r}"
    )


def format_duration(value_ms: int) -> str:
    """The shortest exact spelling of `value_ms`; `parse_duration_ms` reads it back."""
    for unit in ("d", "h", "min", "s"):
        if value_ms and value_ms % _UNIT_MS[unit] == 0:
            return f"{value_ms // _UNIT_MS[unit]}{unit}"
    return f"{value_ms}ms"


DurationMs = Annotated[
    int, BeforeValidator(parse_duration_ms), PlainSerializer(format_duration, return_type=str)
]
"""A duration field: written as text in TOML, an int of milliseconds in code."""

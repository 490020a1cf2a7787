"""Values as people type them: a wrong one names itself, what was expected, and the nearest."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path

import typer


def chosen(value: str, known: Sequence[str], what: str) -> str:
    """`value`, if it is one of `known`. Raises typer.BadParameter (exit code 2)."""
    if value in known:
        return value
    close = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise typer.BadParameter(f"{what} {value!r}: expected one of {', '.join(known)}{hint}")


def positive_number(value: str | float) -> float:
    """`value` as a number above 0. Raises typer.BadParameter (exit code 2)."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise typer.BadParameter(f"{value!r}: expected a number above 0, such as 90 or 0.5")
    return number


def expect_file_in_a_directory(path: Path, shown: str) -> None:
    """`path` can become a file: asked before the work, not behind it.

    Raises typer.BadParameter (exit code 2).
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{shown}: expected a file in a directory that exists")

"""A value chosen from a few: a wrong one is refused with what was expected and the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import typer


def chosen(value: str, known: Sequence[str], what: str) -> str:
    """`value`, if it is one of `known`. Raises typer.BadParameter (exit code 2)."""
    if value in known:
        return value
    close = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise typer.BadParameter(f"{what} {value!r}: expected one of {', '.join(known)}{hint}")

"""A Python function of one's own that mends events, named as FILE.py:FUNCTION."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import typer

from stream.reprocess import Mending


def load_mending(spec: str, option: str) -> Mending:
    """The function `(stream, value) -> value` that `spec` names. Its file is run as Python, with
    the rights of whoever calls. Raises typer.BadParameter (exit code 2)."""
    file, colon, name = spec.rpartition(":")
    path = Path(file)
    if not colon or not name.isidentifier() or not path.is_file():
        raise typer.BadParameter(
            f"{option} {spec!r}: expected FILE.py:FUNCTION, a file that exists"
        )
    found = importlib.util.spec_from_file_location(f"headwater_mending_{path.stem}", path)
    if found is None or found.loader is None:
        raise typer.BadParameter(f"{option} {spec!r}: expected a Python file, got {path.name}")
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module  # dataclasses and msgspec look their module up
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise typer.BadParameter(f"{option}: {path} failed: {error!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = ", ".join(n for n in vars(module) if callable(getattr(module, n)) and n[0] != "_")
        raise typer.BadParameter(f"{option}: {path} has no function {name}, it has: {names}")
    mending: Mending = function
    return mending

"""A process to kill: migrates the store back and forth between two layouts.

It names each step it comes to on stdout and goes on at a line on stdin.
"""

from __future__ import annotations

import sys
from pathlib import Path

import embedding_store.migrate as module
from embedding_store.layout import RowLayout
from tests.test_migrate import ADDED, OLD


def _plan(layout: RowLayout) -> RowLayout:
    _at("begun")
    if "gone" in layout.sets:
        return module.changed_layout(layout, ADDED, ["gone"], {})
    back = {"gone": OLD.sets["gone"]}
    return module.changed_layout(layout, back, list(ADDED), {"gone": ("item_id",)})


def _at(step: str) -> None:
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()
    sys.stdin.readline()


def _exchange(making: Path, path: Path) -> None:
    _at("exchanging")
    exchange(making, path)
    _at("exchanged")


exchange = module.exchange
module.exchange = _exchange
module.migrate(
    Path(sys.argv[1]), _plan, lambda say: _at("comparing") if say.startswith("comparing") else None
)
_at("done")

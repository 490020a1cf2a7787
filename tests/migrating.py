"""A process to kill: migrates the store back and forth between two layouts."""

from __future__ import annotations

import sys
from pathlib import Path

from embedding_store.layout import RowLayout
from embedding_store.migrate import changed_layout, migrate
from tests.test_migrate import ADDED, OLD


def _plan(layout: RowLayout) -> RowLayout:
    if "gone" in layout.sets:
        return changed_layout(layout, ADDED, ["gone"], {})
    return changed_layout(layout, {"gone": OLD.sets["gone"]}, list(ADDED), {"gone": ("item_id",)})


def _begun(layout: RowLayout) -> RowLayout:
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    return _plan(layout)


migrate(Path(sys.argv[1]), _begun, lambda _: None)

"""Compiled kernels and the code that they inline from other files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import embedding_store

PRINT = """
import numpy as np
from embedding_store.fanout import expand
print(expand(np.full((1, 8), 3, np.float32), np.zeros(1, np.int32))[0, 0])
"""


def test_a_change_in_what_a_kernel_inlines_compiles_it_anew(tmp_path: Path) -> None:
    package = tmp_path / "embedding_store"
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(embedding_store.__file__).parent, package, ignore=leave_out)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def printed() -> str:
        run = [sys.executable, "-c", PRINT]
        done = subprocess.run(
            run, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert printed() == "3.0"
    lanes = package / "lanes.py"
    source = lanes.read_text(encoding="utf-8")
    copying = "lambda _builder, _old, given, _scalar: given"
    doubling = "lambda builder, _old, given, _scalar: builder.fadd(given, given)"
    assert copying in source
    lanes.write_text(source.replace(copying, doubling), encoding="utf-8")
    assert printed() == "6.0"
    assert len(list((package / "__pycache__").glob("kernels-*"))) == 2

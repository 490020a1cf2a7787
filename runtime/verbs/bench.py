"""`bench`: runs `bench/NAME.py` in a process of its own, so that this one needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import typer

from runtime.choices import chosen
from runtime.verbs.stack import stop_on_sigterm

BENCHMARKS = ("freshness", "join", "metrics", "publish", "reader", "store", "train")
PARTS = {"store": ("in_memory", "beyond_memory", "on_disk", "commit", "row_precision")}
"""What a long benchmark can run alone."""
_FOLDER = Path(__file__).resolve().parents[2] / "bench"
_STOP_TIMEOUT_S = 60.0


class BenchmarkFailed(RuntimeError):
    """A benchmark ended without a result; its reason is above on stderr."""


def bench(
    name: str = typer.Argument(..., help=" | ".join((*BENCHMARKS, "all"))),
    as_json: bool = typer.Option(False, "--json", help="The whole result; else its main figures."),
    quick: bool = typer.Option(False, "--quick", help="The same keys in under a minute each."),
    part: str | None = typer.Option(
        None, "--part", help=f"One part alone; store: {' | '.join(PARTS['store'])}."
    ),
) -> None:
    """Measure one organ, or all, against a peer or a limit in the same run."""
    stop_on_sigterm()
    chosen(name, (*BENCHMARKS, "all"), "benchmark")
    if part is not None:
        chosen(part, PARTS.get(name, ()), f"part of {name}")
    if not _FOLDER.is_dir():
        raise BenchmarkFailed(f"{_FOLDER}: the benchmarks are part of the repository, not of it")
    names = BENCHMARKS if name == "all" else (name,)
    found = {each: _run(each, quick=quick, part=part) for each in names}
    if as_json:
        shown = found if name == "all" else found[name]
        typer.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
        return
    for each, result in found.items():
        typer.echo(each)
        for key, value in result.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                typer.echo(f"  {key:<28} {value:g}")


def _run(name: str, *, quick: bool, part: str | None) -> dict[str, Any]:
    """What the benchmark printed. It is stopped, and waited for, when this is interrupted."""
    command = [sys.executable, str(_FOLDER / f"{name}.py"), *(["--quick"] if quick else [])]
    command += [] if part is None else ["--part", part]
    typer.echo(f"bench {name}", err=True)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)
        raise
    if process.returncode != 0:
        raise BenchmarkFailed(f"benchmark {name} ended with exit code {process.returncode}")
    result: dict[str, Any] = orjson.loads(output)
    return result

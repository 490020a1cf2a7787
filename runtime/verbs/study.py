"""`study`: runs `bench/study_NAME.py`: a table and a plot under docs/studies, all arms on one
stream, mean and standard deviation over seeds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from runtime.choices import chosen
from runtime.verbs.bench import BenchmarkFailed
from runtime.verbs.stack import stop_on_sigterm

STUDIES = ("online", "delay", "transfer", "deskdrop", "kuairand", "collapse", "entangle")
OF_LOGS = ("deskdrop", "kuairand")
BY_SEED = ("transfer", "deskdrop", "kuairand", "delay")
"""Those that keep what they found per seed (bench/study_seeds.py)."""
RESUME_HELP = "Take the seeds kept in NAME.seeds.json, of the same code."
ROOT = Path(__file__).resolve().parents[2]


def study(
    name: str = typer.Argument(..., help=" | ".join(STUDIES)),
    seeds: int = typer.Option(5, "--seeds", min=1, help="Runs per arm."),
    quick: bool = typer.Option(False, "--quick", help="A small stream: proves that it runs."),
    data: Path = typer.Option(None, "--data", help="deskdrop, kuairand: where the log lies."),
    models: str = typer.Option("", "--models", help="deskdrop, kuairand: run these alone, A,B,C."),
    out: Path = typer.Option(
        ROOT / "docs" / "studies",
        "--out",
        show_default="docs/studies",
        help="Where the results go.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result, too."),
    resume: bool = typer.Option(False, "--resume", help=f"{', '.join(BY_SEED)}: {RESUME_HELP}"),
) -> None:
    """Compare arms on the same stream; the table is written whatever it says."""
    stop_on_sigterm()
    chosen(name, STUDIES, "study")
    more = ["--models", models] if models else []
    if resume:
        chosen(name, BY_SEED, "study --resume")
    run_script(
        f"study_{name}",
        name,
        seeds,
        quick=quick,
        out=out,
        show=as_json,
        resume=resume,
        data=data,
        more=more,
    )


def run_script(
    script_name: str,
    name: str,
    seeds: int,
    *,
    quick: bool,
    out: Path,
    show: bool,
    resume: bool,
    data: Path | None = None,
    more: Sequence[str] = (),
) -> None:
    """Run `bench/SCRIPT_NAME.py`, which writes `NAME.md`; with `show` print what it prints.

    Raises BenchmarkFailed.
    """
    script = ROOT / "bench" / f"{script_name}.py"
    if not script.is_file():
        raise BenchmarkFailed(f"{script}: expected in a checkout of the repository; not found")
    if name in OF_LOGS and data is None:
        raise typer.BadParameter(
            f"study {name}: expected the path of its log, which is not in the repository",
            param_hint="--data",
        )
    command = [sys.executable, str(script), "--seeds", str(seeds), "--out", str(out)]
    command += ["--quick"] if quick else []
    command += ["--resume"] if resume else []
    command += ["--data", str(data)] if data is not None else []
    command += more
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(60)
        raise
    if process.returncode == 2:
        raise typer.Exit(2)
    if process.returncode:
        raise BenchmarkFailed(f"{name} ended with exit code {process.returncode}")
    if show:
        typer.echo(output.decode().rstrip())
    else:
        typer.echo(f"the table is in {out / f'{name}.md'}")

"""`join` and `train`: the same join and the same trainer over files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import typer
from rich.console import Console

from runtime.bounded_join import run_bounded_join
from runtime.choices import expect_file_in_a_directory
from runtime.config_file import read_config
from runtime.jars import require_module
from runtime.verbs.stack import stop_on_sigterm


def join(
    impressions: Path = typer.Option(..., "--impressions", help="JSON lines."),
    conversions: Path = typer.Option(..., "--conversions", help="JSON lines."),
    config_file: Path = typer.Option(..., "--config", help="The config (TOML)."),
    out: Path = typer.Option(..., "--out", help="Directory for what comes out."),
    arrival_order: bool = typer.Option(
        False, "--arrival-order", help="Replay each file as it is, not in event-time order."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the audit."),
) -> None:
    """Join two files by the real broker and the real Flink job; writes samples and the audit."""
    stop_on_sigterm()
    config = read_config(config_file)
    _require_file(impressions, "--impressions")
    _require_file(conversions, "--conversions")
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out {out}: expected a directory, this is a file")
    console = Console(stderr=True)
    with console.status("joining") as status:
        report, refused = run_bounded_join(
            config,
            impressions,
            conversions,
            out,
            arrival_order=arrival_order,
            say=status.update,
        )
    for stream, number, size in refused:
        typer.echo(
            f"{stream} line {number}: refused, {size} bytes are over "
            f"events.bytes_max = {config.events.bytes_max}",
            err=True,
        )
    if as_json:
        typer.echo(
            orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()
        )
    else:
        for stream in ("impressions", "conversions"):
            shown = {k: v for k, v in report[stream].items() if not isinstance(v, dict)}
            typer.echo(f"{stream}: " + ", ".join(f"{v} {k}" for k, v in shown.items()))
        typer.echo(f"{'balanced' if report['balanced'] else 'NOT BALANCED'}; written to {out}")
    if refused or not report["balanced"]:
        raise typer.Exit(1)


def train(
    samples: Path = typer.Option(..., "--samples", help="samples.jsonl, as `join` writes it."),
    config_file: Path = typer.Option(..., "--config", help="The config (TOML)."),
    report: Path = typer.Option(..., "--report", help="Where the report (JSON) goes."),
    store: Path = typer.Option(None, "--store", help="Keep the store here; else it is temporary."),
    as_json: bool = typer.Option(False, "--json", help="Print the report, too."),
) -> None:
    """Learn from bounded samples with the stream's own trainer: predict each, then learn it."""
    read_config(config_file)
    require_module("torch")
    _require_file(samples, "--samples")
    expect_file_in_a_directory(report, f"--report {report}")
    if store is not None and store.exists() and not store.is_dir():
        raise typer.BadParameter(f"--store {store}: expected a directory, this is a file")
    command = [
        *(sys.executable, "-P", "-m", "trainer", "--samples", str(samples)),
        *("--config", str(config_file), "--report", str(report)),
    ]
    if store is not None:
        command += ["--store", str(store)]
    code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if code != 0:
        raise typer.Exit(code if code in (1, 2) else 1)
    text = report.read_text(encoding="utf-8")
    typer.echo(text if as_json else f"the report is in {report}")
    found = orjson.loads(text)
    if found["rejected"]:
        typer.echo(f"{found['rejected']} lines of {samples} were no samples", err=True)
        if not found["samples"]:
            raise typer.Exit(1)


def _require_file(path: Path, option: str) -> None:
    if not path.is_file():
        problem = "expected a file, this is a directory" if path.is_dir() else "no such file"
        raise typer.BadParameter(f"{option} {path}: {problem}")

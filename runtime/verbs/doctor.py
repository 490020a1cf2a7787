"""`doctor`."""

from __future__ import annotations

from pathlib import Path

import orjson
import typer

from runtime.connection import DIR_OPTION
from runtime.diagnosis import diagnose

_MARKS = {"ok": "ok   ", "warning": "look ", "problem": "wrong"}


def doctor(
    directory: Path = DIR_OPTION,
    config_file: Path = typer.Option(None, "--config", help="The config (TOML) to check against."),
    as_json: bool = typer.Option(False, "--json", help="A list of {check, verdict, says, fix}."),
) -> None:
    """Look for what keeps a stack from running well; each finding is one line with its fix.

    Exit 0 = nothing wrong, 1 = something is.
    """
    findings = diagnose(directory, config_file)
    if as_json:
        typer.echo(orjson.dumps([f.as_dict() for f in findings]).decode())
    else:
        for finding in findings:
            fix = f" -> {finding.fix}" if finding.fix else ""
            typer.echo(f"{_MARKS[finding.verdict]}  {finding.check}: {finding.says}{fix}")
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(1)

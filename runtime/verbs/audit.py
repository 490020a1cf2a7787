"""`audit`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import typer

from runtime.connection import BOOTSTRAP_OPTION, CONFIG_OPTION, DIR_OPTION, connect


def audit(
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    bounded: bool = typer.Option(
        False, "--bounded", help="The join has ended: up to the topics' ends, nothing is pending."
    ),
    as_json: bool = typer.Option(False, "--json", help="The whole report."),
) -> None:
    """Recompute the join from the raw topics by brute force: does what went in equal what came out?

    Exit 0 = balanced, 1 = not, with the first differing ids.
    """
    from stream.audit import audit as recompute  # polars loads slowly; two verbs need it

    at = connect(directory, bootstrap, config_file)
    report = recompute(at.config, at.bootstrap, bounded=bounded)
    found = msgspec.to_builtins(report)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        for stream in ("impressions", "conversions"):
            shown = {k: v for k, v in found[stream].items() if not isinstance(v, dict)}
            typer.echo(f"{stream}: " + ", ".join(f"{v} {k}" for k, v in shown.items()))
        typer.echo("balanced" if found["balanced"] else "NOT BALANCED")
        if found["reason"]:
            typer.echo(f"  {found['reason']}")
        for one in found["differences"][:20]:
            where = f"{one['stream']} partition {one['partition']} offset {one['offset']}"
            typer.echo(f"  {where} (id {one['id']}): {one['problem']}")
        for line in found["unreadable"]:
            typer.echo(f"  unreadable: {line}")
    if not found["balanced"]:
        raise typer.Exit(1)

"""`acls`."""

from __future__ import annotations

from pathlib import Path

import orjson
import typer

from runtime.choices import chosen
from runtime.config_file import read_config
from runtime.connection import CONFIG_OPTION
from topics.access import PROCESSES, commands, rights


def acls(
    bootstrap: str = typer.Option(
        None, "--bootstrap", help="host:port in the commands; else kafka.bootstrap."
    ),
    principal: list[str] = typer.Option(
        [], "--principal", help="PROCESS=NAME of its principal; else it is named as the process."
    ),
    config_file: Path = CONFIG_OPTION,
    as_json: bool = typer.Option(
        False, "--json", help="A list of {process, principal, resource, name, prefixed, operations}"
    ),
) -> None:
    """Print the rights that each process needs on a broker with ACLs, as kafka-acls.sh commands."""
    config = read_config(config_file)
    names = {str(process): str(process) for process in PROCESSES}
    for given in principal:
        process, equals, name = given.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"--principal {given!r}: expected PROCESS=NAME")
        names[chosen(process, tuple(names), "--principal's process")] = name
    if as_json:
        found = [{**r._asdict(), "principal": names[r.process]} for r in rights(config)]
        typer.echo(orjson.dumps(found).decode())
        return
    for line in commands(config, bootstrap or config.kafka.bootstrap or "HOST:PORT", names):
        typer.echo(line)

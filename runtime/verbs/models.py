"""`models`."""

from __future__ import annotations

import orjson
import typer

from trainer.models.catalogue import MODELS


def models(
    as_json: bool = typer.Option(False, "--json", help="A list of {name, paper}."),
) -> None:
    """The models that a config can name, one per line with its paper."""
    if as_json:
        rows = [{"name": name, "paper": paper} for name, paper in MODELS.items()]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    width = max(map(len, MODELS))
    for name, paper in MODELS.items():
        typer.echo(f"{name:<{width}}  {paper}")

"""`store migrate`: add or drop embedding sets of a closed store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import typer

from embedding_store.errors import StoreMisuse
from runtime.choices import chosen
from runtime.connection import DIR_OPTION
from runtime.verbs.store import STORE_OPTION

if TYPE_CHECKING:
    from embedding_store.layout import RowLayout

_NUMBERS = ("lr", "eps", "init_scale", "beta1", "beta2", "l1", "l2", "beta")
_OPTIONS = ("dim", "optimizer", "dtype", "slots", *_NUMBERS)


def migrate(
    directory: Path = DIR_OPTION,
    store: Path = STORE_OPTION,
    add: list[str] = typer.Option(
        [],
        "--add-set",
        help="NAME:dim=16[,optimizer=adam,dtype=bfloat16,init_scale=0.01,slots=a+b ...]; "
        "without slots= every slot gets it.",
    ),
    drop: list[str] = typer.Option([], "--drop-set", help="NAME of a set to remove."),
    as_json: bool = typer.Option(False, "--json", help="{store, before, rows, sets}."),
) -> None:
    """Rewrite a store with other embedding sets, compare it, and put it in the old one's place.

    Killed at any moment, it leaves the old store or the new one. The old one is kept beside it.
    """
    from embedding_store.layout import SetSpec
    from embedding_store.migrate import changed_layout
    from embedding_store.migrate import migrate as migrated

    if not add and not drop:
        raise typer.BadParameter("expected --add-set or --drop-set")
    sets: dict[str, SetSpec] = {}
    only: dict[str, tuple[str, ...]] = {}
    for text in add:
        name, values = _set(text)
        if "slots" in values:
            only[name] = tuple(values.pop("slots").split("+"))
        try:
            sets[name] = SetSpec(**values)
        except ValueError as error:
            raise typer.BadParameter(f"--add-set {text!r}: {error}") from None
    path = store if store is not None else directory / "store"

    def say(text: str) -> None:
        typer.echo(text, err=True)

    def plan(layout: RowLayout) -> RowLayout:
        try:
            return changed_layout(layout, sets, drop, only)
        except StoreMisuse as error:
            raise typer.BadParameter(str(error)) from None

    done = migrated(path, plan, say)
    if as_json:
        found = {
            "store": str(path),
            "before": str(done.before),
            "rows": done.rows,
            "sets": {name: spec.shape() for name, spec in done.new.sets.items()},
        }
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    typer.echo(f"{path}: {done.rows} rows, sets {', '.join(done.old.sets)} -> ", nl=False)
    typer.echo(f"{', '.join(done.new.sets)}; the old store is in {done.before}")


def _set(text: str) -> tuple[str, dict[str, Any]]:
    name, colon, rest = text.rpartition(":")  # a set's name may hold colons
    values: dict[str, Any] = {}
    for pair in rest.split(",") if colon else ():
        option, _, value = pair.partition("=")
        chosen(option.strip(), _OPTIONS, "--add-set option")
        values[option.strip()] = value.strip()
    if not name or "dim" not in values:
        raise typer.BadParameter(f"--add-set {text!r}: expected NAME:dim=WIDTH[,option=value ...]")
    for option, value in values.items():
        if option != "dim" and option not in _NUMBERS:
            continue
        try:
            values[option] = int(value) if option == "dim" else float(value)
        except ValueError:
            raise typer.BadParameter(
                f"--add-set {text!r}: {option} = {value!r} is not a number"
            ) from None
    return name, values

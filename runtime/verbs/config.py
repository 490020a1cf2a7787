"""`config init`, `config show`, `config check`."""

from __future__ import annotations

from pathlib import Path

import orjson
import typer
from rich.console import Console
from rich.table import Table

from runtime.choices import chosen
from runtime.config_file import read_config
from runtime.config_init import DAY_MS, render_config
from runtime.inference import read_findings
from settings.duration import parse_duration_ms
from settings.load import load_config
from trainer.models.catalogue import MODELS

app = typer.Typer(
    help="Write, show and check the one config file.", no_args_is_help=True, rich_markup_mode=None
)
FILE_OPTION = typer.Option(None, "--config", help="The config (TOML); the defaults without it.")


@app.command("init")
def init(
    impressions: Path = typer.Option(..., "--impressions", help="A sample of impressions (JSONL)."),
    conversions: Path = typer.Option(..., "--conversions", help="A sample of conversions (JSONL)."),
    window: list[str] = typer.Option(
        [], "--window", help="24h for every kind, or KIND=DUR; may be given again. Default 24h."
    ),
    policy: str = typer.Option("wait", "--policy", help="wait | correct"),
    model: str = typer.Option("lfm4ads", "--model", help="One of `headwater models`."),
) -> None:
    """Infer a working config from a sample of one's own events; prints TOML."""
    chosen(policy, ("wait", "correct"), "policy")
    chosen(model, tuple(MODELS), "model")
    try:
        found = read_findings(impressions, conversions)
    except OSError as error:
        raise typer.BadParameter(f"{error.filename}: {error.strerror}") from error
    windows = _windows(window, tuple(found.kinds))
    typer.echo(render_config(found, windows_ms=windows, policy=policy, model=model), nl=False)


@app.command("show")
def show(
    config_file: Path = FILE_OPTION,
    as_json: bool = typer.Option(False, "--json", help="A list of {name, value, origin}."),
) -> None:
    """Every value in force and where it came from: default, file, environment."""
    values = list(load_config(config_file).values())
    if as_json:
        rows = [{"name": name, "value": value, "origin": at} for name, value, at in values]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    table = Table("value", "is", "from", box=None, pad_edge=False)
    for name, value, origin in values:
        table.add_row(name, str(value), origin)
    Console(soft_wrap=True).print(table)


@app.command("check")
def check(
    file: Path = typer.Argument(None, help="The config (TOML)."),
    config_file: Path = typer.Option(None, "--config", help="The same."),
    as_json: bool = typer.Option(False, "--json", help="{ok, kinds, slots, domains}"),
) -> None:
    """Check every value. Exit 0 = a stack would take it, 2 = what is wrong is on stderr."""
    if file is None and config_file is None:
        raise typer.BadParameter("which file? `headwater config check FILE`")
    config = read_config(file or config_file)
    if as_json:
        report = {
            "ok": True,
            "kinds": list(config.kinds),
            "slots": list(config.slots),
            "domains": list(config.domains),
        }
        typer.echo(orjson.dumps(report).decode())
        return
    typer.echo(
        f"ok: {len(config.kinds)} kinds, {len(config.slots)} slots, {len(config.domains)} domains, "
        f"policy {config.join.policy}, model {config.model.name}"
    )


def _windows(given: list[str], kinds: tuple[str, ...]) -> dict[str, int]:
    """kind -> ms. A bare duration is for every kind that has none of its own."""
    everyone, own = DAY_MS, {}
    for text in given:
        kind, equals, duration = text.rpartition("=")
        try:
            window_ms = parse_duration_ms(duration)
        except ValueError as error:
            raise typer.BadParameter(f"--window {text!r}: {error}") from None
        if equals:
            own[chosen(kind, kinds, "--window's kind")] = window_ms
        else:
            everyone = window_ms
    return {kind: own.get(kind, everyone) for kind in kinds}

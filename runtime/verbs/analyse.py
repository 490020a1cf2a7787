"""`analyse`: collapse, entanglement and correlation of a trained store or a checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import typer

from runtime.choices import chosen
from runtime.connection import DIR_OPTION
from runtime.jars import require_module
from runtime.verbs.store import named_checkpoint

TOOLS = ("collapse", "entanglement", "correlation")


def analyse(
    tool: str = typer.Argument(..., help=" | ".join(TOOLS)),
    directory: Path = DIR_OPTION,
    store: Path = typer.Option(None, "--store", help="A store that no trainer has open."),
    checkpoint: str = typer.Option(
        None,
        "--checkpoint",
        help="latest, or a checkpoint's directory: works beside a live trainer.",
    ),
    config_file: Path = typer.Option(None, "--config", help="The store's config; else --dir's."),
    samples: Path = typer.Option(
        None, "--samples", help="samples.jsonl, for correlation and the rank of layers' outputs."
    ),
    single: list[str] = typer.Option(
        [], "--single", help="entanglement: TASK=DIR, the store of a single-task model. Repeatable."
    ),
    png: Path = typer.Option(None, "--png", help="Write the plot here."),
    as_json: bool = typer.Option(False, "--json", help="Everything, as JSON."),
) -> None:
    """Dimensional collapse, interest entanglement, or what features say against what was learnt."""
    chosen(tool, TOOLS, "tool")
    require_module("torch")
    place = store or directory / "store"
    if checkpoint is not None:
        place = named_checkpoint(directory, store, checkpoint)
    config = config_file or directory / "config.toml"
    command = [sys.executable, "-P", "-m", "trainer.analysis", tool, "--store", str(place)]
    if config_file is not None or config.is_file():
        command += ["--config", str(config)]
    for name, value in (("--samples", samples), ("--png", png)):
        command += [name, str(value)] if value is not None else []
    for each in single:
        command += ["--single", each]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    if done.returncode:
        raise typer.Exit(done.returncode if done.returncode in (1, 2) else 1)
    report = orjson.loads(done.stdout)
    if as_json:
        typer.echo(done.stdout.decode().rstrip())
    else:
        for line in _lines(tool, report):
            typer.echo(line)
    if png is not None:
        typer.echo(f"the plot is in {png}", err=True)


def _lines(tool: str, report: dict[str, Any]) -> list[str]:
    if tool == "collapse":
        lines = [
            f"{slot:<24} {name:<16} information abundance "
            f"{of['information_abundance']:6.2f} of {of['dim']:<4} {of['rows']:>9} rows"
            for slot, sets in report["tables"].items()
            for name, of in sets.items()
        ]
        return lines + [
            f"{name:<41} effective rank        {of['effective_rank']:6.2f} of {of['of']:<4}"
            for name, of in report["activations"].items()
        ]
    if tool == "entanglement":
        lines = [
            f"{name:<40} {v:.3f}"
            for name, v in {**report["entanglement"], **report["views"]}.items()
        ]
        return lines + _what_it_cannot_say(report)
    return [f"{task:<24} Spearman {value:.3f}" for task, value in report["spearman"].items()]


def _what_it_cannot_say(report: dict[str, Any]) -> list[str]:
    """Where entanglement's figures are as they are for any model of this kind."""
    if not report["pairs"]:
        return ["no rows of user_id and item_id in the store: nothing to measure yet"]
    sets = set(report["sets"].values())
    if len(sets) == 1 and report["views"]:
        return [
            f"every task reads the set `{sets.pop()}`: their views are one by construction; "
            "--single TASK=DIR compares it with a model of that task alone"
        ]
    return []

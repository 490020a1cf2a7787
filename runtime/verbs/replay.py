"""`replay`, `compare` and `switch`: a second stack over history, and readers moved over to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console

from runtime.connection import BOOTSTRAP_OPTION, CONFIG_OPTION, DIR_OPTION, Connection, connect
from runtime.replaying import (
    ReplayReport,
    prepare,
    replay_history,
    replay_live,
    shadow_home,
    shadow_prefix,
    train_replay,
)
from runtime.shadow import existing_topics, shadow_config
from runtime.verbs.reprocess import moment_ms
from runtime.verbs.stack import stop_on_sigterm
from settings.config import Config
from settings.load import load_config
from topics.names import MANIFEST
from topics.pointer import write_pointer
from topics.scan import read_to_end

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,29}")
_LIVE = "live"


def replay(
    into: str = typer.Option(..., "--into", help="Name of the replay: small letters, digits, -."),
    start: str = typer.Option(
        None, "--from", help="Event time: a duration before now, Unix ms, or 2026-01-31T08:00."
    ),
    end: str = typer.Option(None, "--to", help="Event time before which impressions are taken."),
    impressions: Path = typer.Option(
        None, "--impressions", help="History from a file (JSON lines or .parquet), not the topics."
    ),
    conversions: Path = typer.Option(None, "--conversions", help="The same of the conversions."),
    train: bool = typer.Option(False, "--train", help="Train a store on it and publish vectors."),
    live: bool = typer.Option(
        False, "--live", help="Read the live topics and stop at exact offsets, to take over there."
    ),
    new_config: Path = typer.Option(
        None, "--with", help="Another config to replay with (windows, policy, model)."
    ),
    arrival_order: bool = typer.Option(
        False, "--arrival-order", help="In the order of production, not of event time."
    ),
    replace: bool = typer.Option(False, "--replace", help="Delete an earlier replay of that name."),
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    as_json: bool = typer.Option(False, "--json", help="The whole report."),
) -> None:
    """Run history through the same join, and the same trainer, into topics and a store of its own.

    Exit 0 = done and balanced, 1 = not, 2 = called wrongly.
    """
    stop_on_sigterm()
    if not _NAME.fullmatch(into) or into == _LIVE:
        raise typer.BadParameter(
            f"--into {into!r}: expected up to 30 small letters, digits and '-', and not 'live'"
        )
    if (impressions is None) != (conversions is None):
        raise typer.BadParameter("--impressions and --conversions go together")
    if live and (impressions or start or end or arrival_order):
        raise typer.BadParameter("--live reads the live topics whole: no files, no --from or --to")
    at = connect(directory, bootstrap, config_file)
    config = _with_topics_of(at.config, new_config)
    between = (
        None if start is None else moment_ms(start, "--from"),
        None if end is None else moment_ms(end, "--to"),
    )
    home = shadow_home(directory, into)
    shadow = prepare(config, at.bootstrap, home, into, live=live, replace=replace)
    with Console(stderr=True).status("replaying") as status:
        if live:
            report = replay_live(shadow, at.bootstrap, home, status.update)
        else:
            report = replay_history(
                shadow,
                at.config,
                at.bootstrap,
                home,
                files=None if impressions is None else (impressions, conversions),
                between_ms=between,
                arrival_order=arrival_order,
                say=status.update,
            )
        if train:
            status.update("training")
            train_replay(at.bootstrap, home)
            report.trained = True
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (home / "report.json").write_bytes(encoded + b"\n")
    typer.echo(encoded.decode() if as_json else _told(report))
    if report.balanced is False or report.refused:
        raise typer.Exit(1)


def compare(
    a: str = typer.Argument(help="'live' or a replay's name."),
    b: str = typer.Argument(help="'live' or a replay's name."),
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    as_json: bool = typer.Option(False, "--json", help="The whole comparison."),
) -> None:
    """Say what differs between two stacks: samples, representations, metrics.

    Exit 0 = compared, whatever differs.
    """
    from runtime.comparing import compare as run  # polars and numpy load slowly

    at = connect(directory, bootstrap, config_file)
    found = run(_stack(at, directory, a), _stack(at, directory, b), at.bootstrap)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    samples = found.samples
    typer.echo(f"a = {found.a}, b = {found.b}")
    typer.echo(
        f"samples: {samples.both} in both, of these {samples.identical} identical; "
        f"{samples.only_a} only in a, {samples.only_b} only in b"
    )
    for kind, count in samples.labels.items():
        typer.echo(f"  label {kind} differs: {count}")
    typer.echo(f"  delays differ: {samples.delays}, values differ: {samples.values}")
    for what, ids in samples.first.items():
        typer.echo(f"  first {what}: {', '.join(ids)}")
    for name, of in found.representations.items():
        cosine = "" if of.cosine_min is None else f", cosine from {of.cosine_min:.4f}"
        typer.echo(
            f"{name}: {of.both} in both, of these {of.identical} identical{cosine}; "
            f"{of.only_a} only in a, {of.only_b} only in b"
        )
    for task, sides in found.metrics.items():
        typer.echo(f"{task}: a {_numbers(sides['a'])}; b {_numbers(sides['b'])}")


def switch(
    name: str = typer.Argument(help="A replay's name, or 'live' to go back."),
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    as_json: bool = typer.Option(False, "--json", help="The pointer as written."),
) -> None:
    """Let every reader of this stack follow a replay's representations, or its own again.

    Refused (exit 1) where there is no published version to follow.
    """
    at = connect(directory, bootstrap, config_file)
    target = _stack(at, directory, name)
    if not any(True for _ in read_to_end(target, at.bootstrap, [MANIFEST])):
        prefix = target.kafka.topic_prefix
        typer.echo(f"{prefix} has published nothing: replay with --train", err=True)
        raise typer.Exit(1)
    pointer = write_pointer(at.config, at.bootstrap, target.kafka.topic_prefix)
    if as_json:
        typer.echo(msgspec.json.encode(pointer).decode())
    else:
        typer.echo(f"readers follow {pointer.topic_prefix}, before: {pointer.previous}")


def _stack(at: Connection, directory: Path, name: str) -> Config:
    if name == _LIVE:
        return at.config
    known = shadow_home(directory, name) / "config.toml"
    if known.exists():
        return load_config(known).config
    prefix = shadow_prefix(at.config, name)
    guessed = shadow_config(at.config, prefix, reads_live=False, bounded=False)
    if not existing_topics(guessed, at.bootstrap):
        there = sorted(path.parent.name for path in directory.glob("replays/*/config.toml"))
        raise typer.BadParameter(
            f"no replay {name!r}, neither in {directory} nor as topics {prefix}.*: "
            f"expected one of {', '.join([_LIVE, *there])}"
        )
    return guessed


def _numbers(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "nothing"
    return ", ".join(
        f"{name} {'-' if value is None else round(value, 4)}" for name, value in metrics.items()
    )


def _with_topics_of(config: Config, file: Path | None) -> Config:
    """The config in `file` over the same topics; without one, `config`."""
    if file is None:
        return config
    other = load_config(file).config
    return other.model_copy(update={"kafka": config.kafka})


def _told(report: ReplayReport) -> str:
    lines = [
        f"{report.topic_prefix}: "
        + ", ".join(f"{count} {stream}" for stream, count in sorted(report.events.items()))
        + f" in {report.seconds:.0f} s"
    ]
    if report.balanced is not None:
        lines.append("balanced" if report.balanced else "NOT BALANCED")
    for stream, offsets in (report.hand_over or {}).items():
        at = ", ".join(f"{partition}:{offset}" for partition, offset in offsets.items())
        lines.append(f"hand-over {stream} at {at}")
    if report.hand_over is not None:
        lines.append(f"go on live: headwater up --dir {report.home}")
    return "\n".join(lines)

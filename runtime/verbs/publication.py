"""`rollback`, `refresh` and `forget`: what an operator says while the stack runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import orjson
import typer

from runtime.connection import BOOTSTRAP_OPTION, CONFIG_OPTION, DIR_OPTION, Connection, connect
from runtime.rendering import utc_time
from settings.duration import parse_duration_ms
from topics.control import send_command
from topics.errors import TopicUnavailable
from topics.history import kept_version, kept_versions
from topics.manifest import Manifest, decode_manifest
from topics.names import MANIFEST
from topics.scan import Partition, end_offsets, read_to_end

_POLL_SECONDS = 0.2
_WAIT_OPTION = typer.Option("60s", "--wait", help="How long to wait for the version; 0s = not.")
_JSON_OPTION = typer.Option(False, "--json", help="The manifest as published, as JSON.")


def rollback(
    version: int = typer.Argument(None, min=1, help="A kept version: see --list."),
    release: bool = typer.Option(False, "--release", help="Let newer content out again."),
    list_kept: bool = typer.Option(False, "--list", help="The versions that can be named."),
    wait: str = _WAIT_OPTION,
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    as_json: bool = _JSON_OPTION,
) -> None:
    """Publish an old version's content once more, under a new version, and hold newer content.

    Learning goes on; what changes meanwhile goes out after --release. Exit 0 = readable, 1 = not
    kept or not readable in time.
    """
    if (version is not None) + release + list_kept != 1:
        raise typer.BadParameter("expected one of VERSION, --release and --list")
    seconds = _seconds(wait)
    at = connect(directory, bootstrap, config_file)
    if list_kept:
        _list(kept_versions(at.config, at.bootstrap), as_json=as_json)
        return
    if version is not None:
        kept_version(at.config, at.bootstrap, version)
    before = end_offsets(at.config, at.bootstrap, [MANIFEST])
    if release:
        send_command(at.config, at.bootstrap, "release")
        typer.echo("released: the next version carries all that was held", err=as_json)
        return
    send_command(at.config, at.bootstrap, "rollback", version=version)
    found = _await(at, before, seconds, lambda m: m.source_version == version)
    _tell(found, f"version {version} is asked for", as_json=as_json)


def refresh(
    wait: str = _WAIT_OPTION,
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    as_json: bool = _JSON_OPTION,
) -> None:
    """Have every vector computed and published anew, from the newest state.

    Exit 0 = the first version that does so is readable, 1 = not in time.
    """
    seconds = _seconds(wait)
    at = connect(directory, bootstrap, config_file)
    before = end_offsets(at.config, at.bootstrap, [MANIFEST])
    send_command(at.config, at.bootstrap, "refresh")
    found = _await(at, before, seconds, lambda m: m.source_version is None)
    _tell(found, "a refresh is asked for", as_json=as_json)


def _seconds(wait: str) -> float:
    try:
        return parse_duration_ms(wait) / 1000
    except ValueError as error:
        raise typer.BadParameter(f"--wait: {error}") from None


def _await(
    at: Connection,
    before: Mapping[Partition, int],
    seconds: float,
    is_it: Callable[[Manifest], bool],
) -> Manifest | None:
    """The first manifest behind `before` that `is_it`; None if nobody waits for it."""
    ends = time.monotonic() + seconds
    while seconds:
        for _, message in read_to_end(at.config, at.bootstrap, [MANIFEST], start=before):
            value = message.value()
            if value is not None and is_it(manifest := decode_manifest(value)):
                return manifest
        if time.monotonic() > ends:
            raise TopicUnavailable(
                f"it was not published in {seconds:g} s: is the trainer running? (its log says why"
                " a command was refused; the command stays asked for)"
            )
        time.sleep(_POLL_SECONDS)
    return None


def _list(kept: list[Manifest], *, as_json: bool) -> None:
    for manifest in kept:
        if as_json:
            told = ("version", "created_ms", "event_ms", "source_version")
            typer.echo(orjson.dumps({name: getattr(manifest, name) for name in told}))
        else:
            old = "" if manifest.source_version is None else f" = {manifest.source_version}"
            newest = utc_time(manifest.event_ms)
            typer.echo(f"{manifest.version}{old}: step {manifest.step}, events until {newest}")


def _tell(found: Manifest | None, asked: str, *, as_json: bool) -> None:
    if found is None:
        typer.echo(asked, err=as_json)
    elif as_json:
        typer.echo(
            orjson.dumps(
                {
                    "version": found.version,
                    "source_version": found.source_version,
                    "counts": found.counts,
                    "reason": found.reason,
                }
            )
        )
    else:
        counts = ", ".join(f"{count} {what}" for what, count in found.counts.items())
        typer.echo(f"version {found.version} is readable: {counts}")


forget_app = typer.Typer(help="Remove a person's data.", no_args_is_help=True)


@forget_app.callback()
def _forget() -> None:
    """So that `user` stays a word of its own."""


@forget_app.command()
def user(
    user_id: str = typer.Argument(help="The user's id, as in the events."),
    check: bool = typer.Option(False, "--check", help="Only look for what is left."),
    with_history: bool = typer.Option(
        False,
        "--delete-history",
        help="Also delete event and sample records up to the user's newest, everyone's with them.",
    ),
    store: Path = typer.Option(None, "--store", help="The store's directory; else that of --dir."),
    wait: str = _WAIT_OPTION,
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    as_json: bool = typer.Option(False, "--json", help="The whole report."),
) -> None:
    """Remove a user from store, vectors and readers, and prove it by looking everywhere.

    Events in Kafka go by retention, or with --delete-history; each place says until when. Exit 0 =
    nothing is left where anyone learns or reads, 1 = something is.
    """
    from runtime.forgetting import Forgotten, ask_to_forget, delete_history, look_for

    seconds = _seconds(wait)
    at = connect(directory, bootstrap, config_file)
    version: int | None = None
    if not check:
        before = ask_to_forget(at.config, at.bootstrap, user_id)
        found = _await(at, before, seconds, lambda m: m.reason == "forgotten")
        version = None if found is None else found.version
    if with_history:
        delete_history(at.config, at.bootstrap, user_id)
    places = look_for(at.config, at.bootstrap, user_id, [store or directory / "store"])
    report = Forgotten(user_id, version, places)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        for place in report.places:
            typer.echo(f"{place.name:<38} {place.found:>6}  {place.note}")
    if not report.is_proven:
        raise typer.Exit(1)

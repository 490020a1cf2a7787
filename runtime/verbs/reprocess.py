"""`reprocess`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import typer

from runtime.choices import chosen
from runtime.connection import BOOTSTRAP_OPTION, CONFIG_OPTION, DIR_OPTION, connect
from runtime.mapping import load_mending
from runtime.reprocessing import reprocess_late
from settings.duration import parse_duration_ms
from stream.reprocess import Reprocessed, reprocess_undecodable


def reprocess(
    topic: str = typer.Argument(help="late or undecodable."),
    since: str = typer.Option(
        None, "--since", help="Put aside since then: a duration (2h) or a time (2026-01-31T08:00)."
    ),
    limit: int = typer.Option(None, "--limit", min=1, help="Send at most so many."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be sent; send nothing."),
    mend: str = typer.Option(
        None,
        "--map",
        metavar="FILE.py:FUNCTION",
        help="undecodable only: FUNCTION(stream, bytes) gives the bytes to send, or None to leave"
        " an event where it is.",
    ),
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    as_json: bool = typer.Option(False, "--json", help="The whole report."),
) -> None:
    """Send what the join put aside through again, each event once, after what was wrong is fixed.

    undecodable: the original bytes, or what --map makes of them, go to their source topic once
    more, if they decode now. late: the late events are joined with their pairs' history by a
    bounded run of the join, and the samples that this adds are appended to the samples. Exit 0 =
    done, 1 = failed.
    """
    chosen(topic, ("late", "undecodable"), "topic")
    if mend is not None and topic != "undecodable":
        raise typer.BadParameter("--map goes with undecodable: late events decode as they are")
    mending = None if mend is None else load_mending(mend, "--map")
    since_ms = 0 if since is None else moment_ms(since, "--since")
    at = connect(directory, bootstrap, config_file)
    if topic == "undecodable":
        report = reprocess_undecodable(
            at.config,
            at.bootstrap,
            since_ms=since_ms,
            limit=limit,
            dry_run=dry_run,
            mending=mending,
        )
    else:
        report = reprocess_late(
            at.config, at.bootstrap, since_ms=since_ms, limit=limit, dry_run=dry_run
        )
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        _tell(report)


def moment_ms(text: str, option: str) -> int:
    """Unix milliseconds of an ISO time (UTC unless it says otherwise), of `now`, or of a duration
    before now. Raises typer.BadParameter (exit code 2)."""
    now_ms = time.time_ns() // 1_000_000
    if text == "now":
        return now_ms
    if text.isdecimal():
        return int(text)
    try:
        return now_ms - parse_duration_ms(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{option} {text!r}: expected a duration such as 2h, Unix milliseconds, or a time such"
            " as 2026-01-31T08:00"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _tell(report: Reprocessed) -> None:
    would = "would be sent" if report.dry_run else "sent"
    typer.echo(
        f"{report.topic}: {report.waiting} waiting, {report.sent} {would} through again "
        f"({report.records} records), {report.refused_total} refused, {report.already} sent before"
    )
    if report.untaught:
        typer.echo(
            f'  {report.untaught} are corrections, which a trainer under join.policy = "wait" does'
            " not learn from: replay --train takes them in"
        )
    for one in report.refused:
        typer.echo(f"  {one.stream} partition {one.partition} offset {one.offset}: {one.reason}")

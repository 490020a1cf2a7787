"""`demo`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import orjson
import typer
from rich.console import Console

from runtime.choices import chosen, expect_file_in_a_directory, positive_number
from runtime.sources.catalog import SOURCES, open_source
from runtime.spotlight import Sighting, describe
from runtime.verbs.stack import stop_on_sigterm
from settings.logs import configure_logs


def demo(
    seconds: float = typer.Option(
        90.0, "--seconds", parser=positive_number, help="How long traffic runs."
    ),
    source: str = typer.Option("simulated", "--source", help=" | ".join(SOURCES)),
    data: Path = typer.Option(None, "--data", help="The log of a real source."),
    report: Path = typer.Option(None, "--report", help="Write the report (JSON) here."),
    directory: Path = typer.Option(
        None, "--dir", help="A new directory for the stack; else a temporary one. It is kept."
    ),
    speedup: float = typer.Option(
        None,
        "--speedup",
        parser=positive_number,
        help="Event time against wall time; a real log's default makes some 250 events/s.",
    ),
    rate: float = typer.Option(
        None, "--rate", parser=positive_number, help="Simulated impressions per second."
    ),
    seed: int = typer.Option(0, "--seed", help="Of the simulated world."),
    as_json: bool = typer.Option(False, "--json", help="Print the report instead of a summary."),
) -> None:
    """The whole journey, live: real broker, join, trainer, store, vectors, then the audit."""
    from runtime.demo import Demo  # numpy and the reader, needed by no other verb
    from runtime.demo_view import DemoView

    stop_on_sigterm()
    chosen(source, SOURCES, "source")
    if report is not None:
        expect_file_in_a_directory(report, f"--report {report}")
    traffic = open_source(source, data, rate=rate, seed=seed)
    directory = _new_directory(directory)
    console = Console(stderr=as_json)
    _log_to(directory / "logs" / "0-supervisor.log")
    try:
        with DemoView(console) as view:
            view.notice(f"everything lies in {directory}")
            found = Demo(
                traffic,
                directory,
                seconds=seconds,
                speedup=speedup or traffic.speedup,
                view=view,
            ).run()
    except KeyboardInterrupt:
        typer.echo(f"interrupted: every process has ended; what it wrote is in {directory}")
        raise typer.Exit(130) from None
    text = orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    if report is not None:
        report.write_bytes(text + b"\n")
    if as_json:
        typer.echo(text.decode())
    else:
        _summarise(console, found, report)
    if not found["audit"]["balanced"]:
        raise typer.Exit(1)


def _new_directory(directory: Path | None) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="headwater-demo-"))
    if (directory / "broker").exists():
        raise typer.BadParameter(
            f"--dir {directory}: a stack has run there, and its events would mix with the demo's; "
            "name a new directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    return directory.resolve()


def _log_to(path: Path) -> None:
    """The screen is the demo's own; what the supervisor says goes to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="utf-8")
    os.set_inheritable(file.fileno(), False)
    configure_logs("supervisor", to=file)


def _summarise(console: Console, found: dict[str, Any], report: Path | None) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    audit = found["audit"]
    say("")
    say(
        f"{found['events'].get('impressions', 0):,} impressions and "
        f"{found['events'].get('conversions', 0):,} conversions in "
        f"{found['seconds_of_traffic']:.0f} s; first vector "
        f"{found['seconds_to_first_vector']:.1f} s after the start; "
        f"{found['versions_published']} versions; {found['restarts']} restarts"
    )
    for stream in ("impressions", "conversions"):
        shown = {k: v for k, v in audit[stream].items() if not isinstance(v, dict)}
        say(f"audit, {stream}: " + ", ".join(f"{v:,} {k}" for k, v in shown.items()))
    say("audit: " + ("what went in equals what came out" if audit["balanced"] else "NOT BALANCED"))
    for kind, fresh in found["freshness_seconds"].items():
        say(f"fresh {kind} vectors: p50 {fresh['p50']:.2f} s, p99 {fresh['p99']:.2f} s")
    for task, values in found["progressive"].items():
        numbers = ", ".join(
            f"{name} {'-' if values.get(name) is None else format(values[name], '.3f')}"
            for name in ("auc", "ne", "pcoc")
        )
        say(f"{task}: {numbers} over {values['samples']:,.0f} impressions")
    if found["one_user"]:
        for line in describe(msgspec.convert(found["one_user"], Sighting)):
            say(line)
    directory = found["directory"]
    say(f"everything lies in {directory}" + (f", the report in {report}" if report else ""))
    say(
        f"look into it: headwater up --dir {directory}, then "
        f"headwater consume representations.user --dir {directory} --to-end"
    )
    sys.stdout.flush()

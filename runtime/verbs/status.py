"""`status`."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from pathlib import Path

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from runtime.connection import DIR_OPTION
from runtime.prometheus import scrape_config
from runtime.readout import Readout, rates, read_out, restarts
from runtime.run_state import RunState, require_run
from runtime.screen import freshness_table, processes_table, stages_table, tasks_table
from runtime.status_page import page


def status(
    directory: Path = DIR_OPTION,
    watch: bool = typer.Option(False, "--watch", help="Keep looking, until Ctrl-C."),
    as_json: bool = typer.Option(False, "--json", help="One look as JSON (a line each, --watch)."),
    prometheus: bool = typer.Option(
        False, "--prometheus", help="Print a prometheus.yml that scrapes this stack, nothing else."
    ),
    rules: Path = typer.Option(None, "--rules", help="With --prometheus: a file of alert rules."),
    html: Path = typer.Option(
        None, "--html", help="Write a page to this file; with --watch a live one, every 2 s."
    ),
) -> None:
    """What a running stack does: processes, rates, lag, freshness, quality, newest version."""
    if prometheus:
        typer.echo(scrape_config(require_run(directory), rules=rules), nl=False)
        return
    if html is not None:
        _write_page(directory, html, watch)
        return
    before = read_out(require_run(directory))
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not watch:
            while True:
                time.sleep(1.0)
                run = require_run(directory)
                now = read_out(run)
                _print(run, before, now, as_json)
                before = now
                if not watch:
                    return
        with Live(refresh_per_second=2) as live:
            while True:
                run = require_run(directory)
                now = read_out(run)
                live.update(_view(run, before, now))
                before = now
                time.sleep(1.0)


def _write_page(directory: Path, file: Path, watch: bool) -> None:
    """One look over a second, or with `watch` one every 2 s and the last five minutes of them."""
    history: deque[Readout] = deque([read_out(require_run(directory))], maxlen=150)
    part = file.with_name(f"{file.name}.part")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(2.0 if watch else 1.0)
            run = require_run(directory)
            history.append(read_out(run))
            part.write_text(page(run, history, refresh_seconds=2 if watch else None), "utf-8")
            part.replace(file)
            if len(history) == 2:
                typer.echo(f"{file.resolve().as_uri()}")
            if not watch:
                return


def _print(run: RunState, before: Readout, now: Readout, as_json: bool) -> None:
    if not as_json:
        Console().print(_view(run, before, now))
        return
    found = msgspec.to_builtins(now)
    del found["at"]
    report = {
        "run": msgspec.to_builtins(run),
        "per_second": rates(before, now),
        "restarts": restarts(run),
        **found,
    }
    typer.echo(msgspec.json.encode(report).decode())


def _view(run: RunState, before: Readout, now: Readout) -> Group:
    version = "none yet" if now.version is None else str(now.version)
    return Group(
        Text(f"stack {run.run_id} at {run.bootstrap}; newest version: {version}"),
        processes_table(run),
        stages_table(now, rates(before, now)),
        freshness_table(now),
        tasks_table(now),
    )

"""`audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from runtime.connection import BOOTSTRAP_OPTION, CONFIG_OPTION, DIR_OPTION, Connection, connect
from settings.duration import parse_duration_ms
from topics.metrics import MetricsServer

if TYPE_CHECKING:
    from stream.audit import AuditReport


def audit(
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    bounded: bool = typer.Option(
        False, "--bounded", help="The join has ended: up to the topics' ends, nothing is pending."
    ),
    as_json: bool = typer.Option(False, "--json", help="The whole report."),
    follow: bool = typer.Option(
        False, "--follow", help="Round after round beside the running join, until one differs."
    ),
    every: str = typer.Option("30s", "--every", help="With --follow: time between rounds."),
    rounds: int = typer.Option(None, "--rounds", min=1, help="With --follow: so many, then end."),
    metrics_port: int = typer.Option(
        None, "--metrics-port", help="With --follow: serve headwater_audit_* here (0 = any port)."
    ),
) -> None:
    """Recompute the join from the raw topics by brute force: does what went in equal what came out?

    Exit 0 = balanced, 1 = not, with the first differing ids.
    """
    at = connect(directory, bootstrap, config_file)
    if follow:
        if bounded:
            raise typer.BadParameter("--follow looks at a running join, --bounded at an ended one")
        _follow(at, _seconds(every), rounds, metrics_port, as_json=as_json)
        return
    from stream.audit import audit as recompute  # polars loads slowly; two verbs need it

    _tell(recompute(at.config, at.bootstrap, bounded=bounded), as_json=as_json)


def _seconds(every: str) -> float:
    try:
        return parse_duration_ms(every) / 1000
    except ValueError as error:
        raise typer.BadParameter(f"--every: {error}") from None


def _follow(
    at: Connection, every_s: float, rounds: int | None, metrics_port: int | None, *, as_json: bool
) -> None:
    from prometheus_client import CollectorRegistry

    from stream.audit_live import AuditMetrics, LiveAudit

    registry = CollectorRegistry()
    metrics = AuditMetrics(registry)
    if metrics_port is not None:
        server = MetricsServer(metrics_port, host=at.config.metrics.host, registry=registry)
        typer.echo(f"metrics on port {server.port}", err=True)
    live = LiveAudit(at.config, at.bootstrap)
    for number, report in enumerate(live.rounds(every_s), start=1):
        metrics.observe(report)
        if as_json or not report.balanced or number == rounds:
            _tell(report, as_json=as_json)
        else:
            events = report.impressions.in_ + report.conversions.in_
            typer.echo(f"round {number}: balanced, {events} events, {report.settled} settled")
        if number == rounds:
            return


def _tell(report: AuditReport, *, as_json: bool) -> None:
    found = msgspec.to_builtins(report)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        for stream in ("impressions", "conversions"):
            shown = {k: v for k, v in found[stream].items() if not isinstance(v, dict)}
            typer.echo(f"{stream}: " + ", ".join(f"{v} {k}" for k, v in shown.items()))
        typer.echo("balanced" if found["balanced"] else "NOT BALANCED")
        if found["reason"]:
            typer.echo(f"  {found['reason']}")
        for one in found["differences"][:20]:
            where = f"{one['stream']} partition {one['partition']} offset {one['offset']}"
            typer.echo(f"  {where} (id {one['id']}): {one['problem']}")
        for kind, windows in found["first_by_kind"].items():
            for start_ms, window in windows.items():
                ids = ", ".join(map(str, window["first_ids"]))
                typer.echo(f"  {kind}, hour from {start_ms}: {window['total']} differ, first {ids}")
        for line in found["unreadable"]:
            typer.echo(f"  unreadable: {line}")
    if not found["balanced"]:
        raise typer.Exit(1)

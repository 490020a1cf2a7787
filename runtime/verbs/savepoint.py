"""`savepoint` and `submit`: the join's state kept across releases, and the join on a cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import orjson
import typer

from runtime.config_file import read_config
from runtime.connection import DIR_OPTION
from runtime.run_state import read_run
from stream.savepoint import take_savepoint


def savepoint(
    directory: Path = DIR_OPTION,
    state_dir: Path = typer.Option(
        None, "--state-dir", help="Of a join started by `submit` or `python -m stream`."
    ),
    stop: bool = typer.Option(
        False, "--stop", help="End the join with it: the next start goes on exactly behind it."
    ),
    as_json: bool = typer.Option(False, "--json", help='{"savepoint": PATH}'),
) -> None:
    """Write the join's state to a savepoint.

    Of a stack, stop it with `headwater down --savepoint` instead of --stop: its supervisor would
    start the join again at once.
    """
    if stop and state_dir is None:
        run = read_run(directory)
        if run is not None and run.is_alive:
            raise typer.BadParameter(
                f"--stop: the join of {directory} is supervised; `headwater down --savepoint"
                f" --dir {directory}` stops the stack with a savepoint"
            )
    path = take_savepoint(state_dir or directory / "join", stop=stop)
    if as_json:
        typer.echo(orjson.dumps({"savepoint": str(path)}).decode())
    else:
        typer.echo(f"{path}{' (the join has ended)' if stop else ''}")


def submit(
    jobmanager: str = typer.Option(..., "--jobmanager", help="HOST:PORT of the cluster's REST."),
    state_dir: Path = typer.Option(
        ..., "--state-dir", help="Checkpoints; the cluster's machines see it under the same path."
    ),
    config_file: Path = typer.Option(..., "--config", help="The config (TOML)."),
    bootstrap: str = typer.Option(None, "--bootstrap", help="The broker; else kafka.bootstrap."),
    detach: bool = typer.Option(False, "--detach", help="Do not stay to watch the job."),
    metrics_port: int = typer.Option(None, "--metrics-port", help="Serve /metrics here (0 = any)."),
    restore: Path = typer.Option(None, "--restore", help="Start from this savepoint."),
) -> None:
    """Run the join on a standalone Flink cluster; a job of that name already there is followed.

    Exit 1 when the job failed or the JobManager came back without it: started again, the join goes
    on from its newest checkpoint.
    """
    read_config(config_file)
    command = [
        *(sys.executable, "-P", "-m", "stream", "--target", "remote", "--jobmanager", jobmanager),
        *("--state-dir", str(state_dir), "--config", str(config_file)),
    ]
    if bootstrap is not None:
        command += ["--bootstrap", bootstrap]
    if detach:
        command.append("--detach")
    if metrics_port is not None:
        command += ["--metrics-port", str(metrics_port)]
    if restore is not None:
        command += ["--restore", str(restore)]
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606  one process: signals reach the join itself

"""`up` and `down`."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

import psutil
import structlog
import typer

from runtime.config_file import read_config
from runtime.connection import DIR_OPTION
from runtime.run_state import require_run
from runtime.stack import Stack
from runtime.supervisor import StackFailed
from settings.logs import bind_run
from stream.savepoint import request as request_savepoint

_log = structlog.get_logger("headwater")
_DOWN_TIMEOUT_S = 90.0


def stop_on_sigterm() -> None:
    """Make SIGTERM what Ctrl-C is: one way to stop, which stops every child.

    Ctrl-C itself is set, too: a shell starts background jobs with it ignored.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def up(
    directory: Path = DIR_OPTION,
    config_file: Path = typer.Option(None, "--config", help="The config (TOML)."),
) -> None:
    """Start broker, join, trainer and reader on free loopback ports, until stopped."""
    stop_on_sigterm()
    again = directory / "config.toml"
    if config_file is None and again.exists():
        config_file = again
        _log.info("no --config given: as this directory ran last", config=str(again))
    config = read_config(config_file)
    try:
        with Stack(directory, config) as stack:
            bind_run(stack.run_id, "supervisor")
            started = time.monotonic()
            stack.start()
            assert stack.supervisor is not None
            while not stack.supervisor.all_ready:
                stack.poll()
                time.sleep(0.05)
            _log.info(
                "the stack is up",
                seconds=round(time.monotonic() - started, 1),
                bootstrap=stack.bootstrap,
                directory=str(stack.directory),
            )
            typer.echo(
                f"up: Kafka at {stack.bootstrap}; `headwater status --dir {directory}` shows it, "
                f"Ctrl-C or `headwater down --dir {directory}` stops it"
            )
            while True:
                stack.poll()
                time.sleep(0.2)
    except KeyboardInterrupt:
        typer.echo("stopped: every process has ended")


def down(
    directory: Path = DIR_OPTION,
    savepoint: bool = typer.Option(
        False, "--savepoint", help="End the join with a savepoint: before an upgrade."
    ),
) -> None:
    """Stop the stack of --dir and wait until all its processes have ended."""
    run = require_run(directory)
    if savepoint:
        request_savepoint(directory / "join")
    process = psutil.Process(run.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_DOWN_TIMEOUT_S)
    except psutil.TimeoutExpired:
        raise StackFailed(
            f"pid {run.pid} still runs after {_DOWN_TIMEOUT_S:g} s; its logs are in "
            f"{directory / 'logs'}"
        ) from None
    typer.echo(f"down: the stack in {directory} (pid {run.pid}) has ended")

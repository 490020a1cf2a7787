"""How every process logs: to stderr, readable on a terminal, else one JSON object a line, each with
the process's name and the run's id, by which the lines of one stack are found in all logs."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from typing import TextIO

import structlog

RUN_ID_VARIABLE = "HEADWATER_RUN_ID"
"""In the environment of every process of a stack, so that strays of a dead one can be told."""


def configure_logs(process: str = "", *, to: TextIO | None = None) -> None:
    """Before the first line is logged. A process of a stack (`process`) has the stack's run id, or
    one of its own where it was started by itself (a container); a tool has neither."""
    out = sys.stderr if to is None else to
    console = out.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(out),
    )
    if process:
        # Its own children have it, too.
        bind_run(os.environ.setdefault(RUN_ID_VARIABLE, uuid.uuid4().hex[:12]), process)


def bind_run(run_id: str, process: str) -> None:
    """Let every line from here on, of any thread, say whose it is."""
    processors = [p for p in structlog.get_config()["processors"] if not isinstance(p, _Whose)]
    structlog.configure(processors=[_Whose(run_id, process), *processors])


class _Whose:
    """A processor: contextvars would miss the threads that a process starts."""

    def __init__(self, run_id: str, process: str) -> None:
        self._fields = {"run": run_id, "process": process}

    def __call__(
        self, _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        return {**event, **self._fields}

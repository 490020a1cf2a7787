"""`python -m stream`: run the join until its bounded input ends, or until SIGTERM.

Exit 0 at the end of bounded input or when stopped, 1 when it failed (reason on stderr), 2 on usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import structlog

from settings.config import Config
from settings.load import ConfigError, load_config
from stream.errors import JoinError
from topics.admin import ensure_topics
from topics.errors import TopicError
from topics.lag import committed_offsets
from topics.names import STREAMS, join_group

_log = structlog.get_logger()


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stream", description=__doc__)
    parser.add_argument("--config", type=Path, help="the stack's TOML file (default: defaults)")
    parser.add_argument("--bootstrap", help="host:port of the broker (default: kafka.bootstrap)")
    parser.add_argument("--state-dir", type=Path, required=True, help="checkpoints and logs")
    parser.add_argument("--bounded", action="store_true", help="join what is there now, then end")
    parser.add_argument("--metrics-port", type=int, help="serve /metrics here (0 = a free port)")
    parser.add_argument("--rest-port", type=int, default=0, help="Flink's REST (0 = a free port)")
    return parser.parse_args(argv)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Stop:
    """SIGTERM and SIGINT: while starting they end the process at once (nothing runs that could be
    lost, and planning can take a while on a busy machine); later they ask `wait` to return."""

    def __init__(self) -> None:
        self.running = False
        self._asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def asked(self) -> bool:
        return self._asked.is_set()

    def _ask(self, *_: object) -> None:
        if not self.running:
            os._exit(0)
        self._asked.set()


def _run(arguments: argparse.Namespace, config: Config, bootstrap: str, stop: _Stop) -> None:
    from stream.job import JoinJob
    from stream.metrics import serve_metrics

    ensure_topics(config, bootstrap)
    rest_port = arguments.rest_port or _free_port()
    job = JoinJob(
        config,
        bootstrap,
        arguments.state_dir,
        bounded=arguments.bounded,
        rest_port=rest_port,
        has_run=lambda: bool(committed_offsets(config, bootstrap, join_group(config), STREAMS)()),
    )
    _log.info(
        "join_started",
        job=job.job_id,
        rest=f"http://127.0.0.1:{rest_port}",
        restored_from=str(job.restored_from or "nothing"),
        bounded=arguments.bounded,
    )
    if arguments.metrics_port is not None:
        port = serve_metrics(config, bootstrap, arguments.metrics_port, rest_port, job.job_id)
        _log.info("join_metrics", url=f"http://{config.metrics.host}:{port}/metrics")
    stop.running = True
    if job.wait(stop.asked):
        _log.info("join_ended", job=job.job_id, net_runtime_ms=job.net_runtime_ms)
    else:
        job.cancel()
        _log.info("join_stopped", job=job.job_id)


def main(argv: list[str]) -> int:
    """Returns the exit status; see the module."""
    arguments = _arguments(argv)
    stop = _Stop()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        config = load_config(arguments.config).config
        bootstrap = arguments.bootstrap or config.kafka.bootstrap
        if not bootstrap:
            raise ConfigError("no broker: give --bootstrap or kafka.bootstrap")
        _run(arguments, config, bootstrap, stop)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (JoinError, TopicError) as error:
        if stop.asked():
            return 0
        sys.stderr.write(f"join failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    # py4j's threads and the JVM behind them have no orderly end; the JVM ends with this process.
    os._exit(status)

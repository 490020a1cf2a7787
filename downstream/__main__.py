"""`python -m downstream`: a reader process that tails the representations and exports how fresh
they are. It runs until SIGTERM or SIGINT; exit 1 says why it could not go on."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

import structlog
from prometheus_client import REGISTRY

from downstream.freshness import Freshness
from downstream.metrics import ReaderMetrics
from downstream.reader import RepresentationReader
from settings.config import Config
from settings.load import ConfigError, load_config_at
from settings.logs import configure_logs
from topics.errors import TopicError
from topics.lag import LagMonitor
from topics.metrics import MetricsServer
from topics.names import KINDS, MANIFEST, REPRESENTATION_TOPICS

_log = structlog.get_logger()


def main() -> int:
    """0 = stopped as asked, 1 = failed, 2 = bad usage."""
    arguments = _arguments()
    configure_logs("reader")
    try:
        config = load_config_at(arguments.config, arguments.bootstrap)
        bootstrap = config.kafka.bootstrap
        if not bootstrap:
            raise ConfigError("no broker: give --bootstrap or kafka.bootstrap")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        failure = _serve(config, bootstrap, arguments.metrics_port, stopping)
    except (TopicError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if failure is not None:
        sys.stderr.write(f"the reader has stopped: {failure}\n")
        return 1
    return 0


def _serve(
    config: Config, bootstrap: str, metrics_port: int, stopping: threading.Event
) -> str | None:
    """Read until `stopping` is set or the reader fails; returns why it failed.

    Raises TopicError, TimeoutError and, where the port is taken, OSError.
    """
    freshness = Freshness()
    with RepresentationReader(config, bootstrap, on_applied=freshness.observe) as reader:
        lag = LagMonitor(
            config,
            bootstrap,
            f"{config.kafka.topic_prefix}.reader",
            (*REPRESENTATION_TOPICS, MANIFEST),
            reader.positions,
        )
        REGISTRY.register(lag)
        REGISTRY.register(ReaderMetrics(reader, KINDS))
        server = MetricsServer(
            metrics_port,
            host=config.metrics.host,
            unhealthy=reader.failure,
            pages={"/freshness": freshness.page},
        )
        _log.info("reader_ready", version=reader.version, metrics_port=server.port)
        while not stopping.wait(0.2) and reader.failure() is None:
            pass
        server.close()
        lag.close()
        return reader.failure()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m downstream", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file; the defaults without it")
    parser.add_argument("--bootstrap", default="", help="host:port; else kafka.bootstrap's")
    parser.add_argument("--metrics-port", type=int, default=0, help="0 = a free one, logged")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

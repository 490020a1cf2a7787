"""`python -m stream`: run the join until its bounded input ends, or until SIGTERM.

Exit 0 at the end of bounded input or when stopped, 1 when it failed (reason on stderr), 2 on usage.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from settings.config import Config
from settings.load import ConfigError, load_config_at
from settings.logs import configure_logs
from stream.errors import JoinError
from stream.flink_rest import FlinkRest
from stream.plan import job_name
from stream.remote import Cluster, RemoteJob, running_job
from stream.savepoint import is_requested, take_savepoint
from topics.admin import ensure_topics
from topics.errors import TopicError
from topics.lag import committed_offsets
from topics.names import STREAMS, join_group

if TYPE_CHECKING:
    from stream.job import JoinJob  # loads PyFlink only where a job is planned

_log = structlog.get_logger()
_ADDRESS = re.compile(r"([^:\s]+):(\d{1,5})")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stream", description=__doc__)
    parser.add_argument("--config", type=Path, help="the stack's TOML file (default: defaults)")
    parser.add_argument("--bootstrap", help="host:port of the broker (default: kafka.bootstrap)")
    parser.add_argument("--state-dir", type=Path, required=True, help="checkpoints and logs")
    parser.add_argument("--bounded", action="store_true", help="join what is there now, then end")
    parser.add_argument("--metrics-port", type=int, help="serve /metrics here (0 = a free port)")
    parser.add_argument("--rest-port", type=int, default=0, help="Flink's REST (0 = a free port)")
    parser.add_argument(
        "--target",
        choices=("local", "remote"),
        default="local",
        help="a JVM of its own, or a cluster, which must see --state-dir under the same path",
    )
    parser.add_argument("--jobmanager", metavar="HOST:PORT", help="with --target remote: its REST")
    parser.add_argument(
        "--detach", action="store_true", help="with --target remote: submit, do not stay"
    )
    parser.add_argument(
        "--restore", type=Path, help="start from this savepoint (default: the newest state)"
    )
    options = parser.parse_args(argv)
    if (options.target == "remote") != (options.jobmanager is not None):
        parser.error("--target remote and --jobmanager HOST:PORT go together")
    if options.jobmanager is not None and not _ADDRESS.fullmatch(options.jobmanager):
        parser.error(f"--jobmanager: expected HOST:PORT, got {options.jobmanager!r}")
    if options.target == "remote" and options.bounded:
        parser.error("--bounded joins run in a JVM of their own: leave out --target remote")
    if options.detach and options.target != "remote":
        parser.error("--detach goes with --target remote")
    return options


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
    from stream.metrics import serve_metrics

    ensure_topics(config, bootstrap)
    rest_port = arguments.rest_port or _free_port()
    cluster = _cluster(arguments)
    rest = cluster.url if cluster is not None else f"http://127.0.0.1:{rest_port}"
    job = _attach(config, cluster) or _submit(arguments, config, bootstrap, rest_port)
    if arguments.detach:
        return
    if arguments.metrics_port is not None:
        port = serve_metrics(
            config,
            bootstrap,
            arguments.metrics_port,
            rest,
            job.job_id,
            state_dir=arguments.state_dir,
        )
        _log.info("join_metrics", url=f"http://{config.metrics.host}:{port}/metrics")
    stop.running = True
    if job.wait(stop.asked):
        _log.info("join_ended", job=job.job_id)
    elif is_requested(arguments.state_dir):
        path = take_savepoint(arguments.state_dir, stop=True)
        _log.info("join_stopped", job=job.job_id, savepoint=str(path))
    else:
        job.cancel()
        _log.info("join_stopped", job=job.job_id)


def _cluster(arguments: argparse.Namespace) -> Cluster | None:
    if arguments.jobmanager is None:
        return None
    host, port = arguments.jobmanager.split(":")
    return Cluster(host, int(port))


def _attach(config: Config, cluster: Cluster | None) -> RemoteJob | None:
    """The join that runs on the cluster already: another beside it would write all twice."""
    if cluster is None:
        return None
    rest = FlinkRest(cluster.url)
    job_id = running_job(rest, job_name(config))
    if job_id is None:
        return None
    _log.info("join_found_running", job=job_id, rest=cluster.url)
    return RemoteJob(rest, job_id)


def _submit(
    arguments: argparse.Namespace, config: Config, bootstrap: str, rest_port: int
) -> JoinJob:
    from stream.job import JoinJob

    cluster = _cluster(arguments)
    position = committed_offsets(config, bootstrap, join_group(config), STREAMS)
    job = JoinJob(
        config,
        bootstrap,
        arguments.state_dir,
        bounded=arguments.bounded,
        rest_port=rest_port,
        has_run=lambda: bool(position()),
        cluster=cluster,
        restore=arguments.restore,
        position=position,
    )
    _log.info(
        "join_started",
        job=job.job_id,
        rest=cluster.url if cluster else f"http://127.0.0.1:{rest_port}",
        restored_from=str(job.restored_from or "nothing"),
        bounded=arguments.bounded,
    )
    return job


def main(argv: list[str]) -> int:
    """Returns the exit status; see the module."""
    arguments = _arguments(argv)
    stop = _Stop()
    configure_logs("join")
    try:
        config = load_config_at(arguments.config, arguments.bootstrap)
        bootstrap = config.kafka.bootstrap
        if not bootstrap:
            raise ConfigError("no broker: give --bootstrap or kafka.bootstrap")
        _run(arguments, config, bootstrap, stop)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (JoinError, TopicError, OSError) as error:
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

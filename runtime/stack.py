"""One running stack: broker, topics, join, trainer, reader, in a directory of its own.

    with Stack(directory, config) as stack:
        stack.start()
        while ...: stack.poll()

What lies in the directory: `config.toml` (the merged config that every process reads), `run.json`,
`logs/`, `broker/`, `join/` (checkpoints), `store/`.
"""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from runtime.broker import HOST, BrokerError, EmbeddedBroker, cluster_id_at
from runtime.config_file import write_config
from runtime.jars import flink_jars, require_java
from runtime.run_state import (
    ChildState,
    DirectoryLock,
    RunState,
    end_strays,
    now_ms,
    read_run,
    write_run,
)
from runtime.supervisor import ChildSpec, StackFailed, Supervisor
from settings.config import Config
from settings.credentials import resolved
from settings.logs import RUN_ID_VARIABLE
from topics.admin import ensure_topics
from topics.errors import TopicError
from topics.lag import committed_offsets
from topics.names import EVENT_TOPICS, SAMPLES, join_group, trainer_group

METRIC_CHILDREN = ("join", "trainer", "reader")


class Stack:
    """Holds `directory` while entered. Raises StackRunning when another stack does.

    Enter it, and call `start` and `poll`, from the thread that lives longest.
    """

    def __init__(self, directory: Path, config: Config) -> None:
        self.directory = directory.resolve()
        self.config = config
        self.run_id = uuid.uuid4().hex[:12]
        self._lock = DirectoryLock(self.directory)
        self._broker = None if config.kafka.bootstrap else EmbeddedBroker(self.directory / "broker")
        self._ports = dict(zip((*METRIC_CHILDREN, "rest"), _free_ports(4), strict=True))
        self._run: RunState | None = None
        self.supervisor: Supervisor | None = None

    @property
    def bootstrap(self) -> str:
        return self._broker.bootstrap if self._broker else self.config.kafka.bootstrap

    @property
    def config_path(self) -> Path:
        return self.directory / "config.toml"

    @property
    def run(self) -> RunState:
        assert self._run is not None, "started"
        return self._run

    def __enter__(self) -> Self:
        self._lock.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        try:
            self.stop()
        finally:
            self._lock.__exit__(*raised)

    def start(self) -> None:
        """Start everything; returns at once, `poll` until `supervisor.all_ready`.

        Raises ToolMissing, BrokerError, TopicError, all before any child runs.
        """
        require_java()
        flink_jars()
        dead = read_run(self.directory)
        if dead is not None:
            end_strays(dead.run_id)
        write_config(
            self.config,
            self.config_path,
            comment=f"What the stack {self.run_id} runs with; written anew at every start.",
        )
        if self._broker is not None:
            self._broker.prepare()
            cluster_id = self._broker.cluster_id
        else:
            cluster_id = self._require_given_broker()
            ensure_topics(self.config, self.bootstrap)
        self._run = RunState(
            run_id=self.run_id,
            pid=os.getpid(),
            pid_created=psutil.Process().create_time(),
            started_ms=now_ms(),
            bootstrap=self.bootstrap,
            cluster_id=cluster_id,
            topic_prefix=self.config.kafka.topic_prefix,
            config=str(self.config_path),
            embedded=self._broker is not None,
        )
        self.supervisor = Supervisor(self.directory, self._specs(), on_change=self._write_run_state)
        self._write_run_state()
        self.poll()

    def poll(self) -> None:
        """Move every process on. Raises StackFailed once one cannot be kept running."""
        assert self.supervisor is not None
        try:
            self.supervisor.poll()
        except BrokerError as error:
            raise StackFailed(str(error)) from error

    def stop(self) -> None:
        """Stop every process and wait. Idempotent; run.json stays and says that all ended."""
        if self.supervisor is not None:
            self.supervisor.stop()
            end_strays(self.run_id)

    def _require_given_broker(self) -> str:
        extra = resolved(self.config.kafka.extra)
        found = cluster_id_at(self.bootstrap, timeout_s=10, **extra)
        if found is None:
            raise BrokerError(f"no Kafka broker answers at {self.bootstrap} (kafka.bootstrap)")
        return found

    def _specs(self) -> list[ChildSpec]:
        env = {RUN_ID_VARIABLE: self.run_id}
        after: tuple[str, ...] = ()
        specs = []
        if self._broker is not None:
            after = ("broker",)
            specs.append(
                ChildSpec(
                    name="broker",
                    command=self._broker.command(),
                    ready=self._broker_ready,
                    before_start=self._broker.refuse_foreign,
                    env=env,
                )
            )
        arguments = {
            "join": [
                *("-m", "stream", "--state-dir", str(self.directory / "join")),
                *("--rest-port", str(self._ports["rest"])),
            ],
            "trainer": ["-m", "trainer", "--store", str(self.directory / "store")],
            "reader": ["-m", "downstream"],
        }
        shared = ["--config", str(self.config_path), "--bootstrap", self.bootstrap]
        for name, own in arguments.items():
            port = self._ports[name]
            # -P: a folder of the user's named like one of our packages must not shadow it.
            command = [sys.executable, "-P", *own, *shared, "--metrics-port", str(port)]
            spec = ChildSpec(
                name=name,
                command=command,
                ready=_answers(port),
                after=after,
                env=env,
                position=self._position(name),
            )
            specs.append(spec)
        return specs

    def _position(self, name: str) -> Callable[[], object] | None:
        """How far a child has come by the offsets that its group has committed."""
        groups = {
            "join": (join_group(self.config), EVENT_TOPICS),
            "trainer": (trainer_group(self.config), (SAMPLES,)),
        }
        if name not in groups:
            return None
        group, topics = groups[name]

        def position() -> object:
            broker = self.supervisor.children.get("broker") if self.supervisor else None
            if broker is not None and broker.state != "running":
                return None
            try:
                found = committed_offsets(self.config, self.bootstrap, group, topics)()
            except TopicError:
                return None
            return {f"{topic}-{n}": at for (topic, n), at in sorted(found.items())} or None

        return position

    def _broker_ready(self) -> bool:
        assert self._broker is not None
        if not self._broker.is_ready():
            return False
        ensure_topics(self.config, self.bootstrap)
        return True

    def _write_run_state(self) -> None:
        if self._run is None or self.supervisor is None:
            return
        self._run.children = {
            name: ChildState(
                state=child.state,
                pid=child.pid,
                restarts=child.restarts,
                reason=child.reason,
                log=str(child.log_path),
                metrics_port=self._ports.get(name),
            )
            for name, child in self.supervisor.children.items()
        }
        write_run(self.directory, self._run)


def _answers(port: int) -> Callable[[], bool]:
    """Does the process that serves its metrics on `port` answer?"""

    def ready() -> bool:
        try:
            return httpx.get(f"http://{HOST}:{port}/metrics", timeout=2).is_success
        except httpx.HTTPError:
            return False

    return ready


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

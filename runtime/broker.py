"""A real Kafka broker (KRaft, one node, loopback) in a directory of its own.

    broker = EmbeddedBroker(directory)
    broker.start()          # formats on first use, ready and proven ours when it returns
    broker.bootstrap        # "127.0.0.1:41523", the same after every restart

A port may already belong to someone else's broker, and a Kafka client talks happily to whichever
broker answers. So nothing is written before the answering cluster id equals the one formatted here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import IO, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from runtime.child import spawn
from runtime.jars import kafka_classpath, require_java
from settings.java import java_options

HOST = "127.0.0.1"
TRANSACTION_TIMEOUT_MS_MAX = 86_400_000
"""A join may be down this long without losing what it had written (join.transaction_timeout)."""

_LOG4J = """status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {folder}/server.log
appender.file.filePattern = {folder}/server.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %c{{1}} %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
"""

_HEAP = ("-Xms64m", "-Xmx512m")


class BrokerError(RuntimeError):
    """The embedded broker did not start, or is not the one formatted here.

    Operator action: read the reason; its whole log is `server.log` in the broker's directory.
    """


class ForeignBroker(BrokerError):
    """Another cluster answers on our port. Operator action: free the port, or use another --dir."""


class EmbeddedBroker:
    """One broker over `directory`: its ports and cluster id are kept there across restarts.

    `port` fixes the client port at the first start (0 or None = a free one).
    """

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self._dir = directory.resolve()
        self._asked_port = port or 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._port = 0
        self._cluster_id = ""

    @property
    def bootstrap(self) -> str:
        """host:port for clients; empty before `prepare` or `start`."""
        return f"{HOST}:{self._port}" if self._port else ""

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def log_path(self) -> Path:
        return self._dir / "server.log"

    def prepare(self) -> None:
        """Choose ports and format the log directory, unless done before.

        Raises ToolMissing without Java or jars, BrokerError when formatting fails.
        """
        state = self._dir / "broker.json"
        if state.exists():
            known = json.loads(state.read_text(encoding="utf-8"))
            self._port, self._cluster_id = known["port"], known["cluster_id"]
            if self._asked_port not in (0, self._port):
                raise BrokerError(
                    f"this directory's broker listens on port {self._port}, "
                    f"not {self._asked_port}: {self._dir}"
                )
            return
        self._dir.mkdir(parents=True, exist_ok=True)
        (self._dir / "log4j2.properties").write_text(
            _LOG4J.format(folder=self._dir), encoding="utf-8"
        )
        self._port, controller_port = _free_ports(self._asked_port)
        self._cluster_id = _new_cluster_id()
        (self._dir / "server.properties").write_text(
            self._properties(controller_port), encoding="utf-8"
        )
        self._format()
        # Written last: a directory without it is formatted afresh.
        state.write_text(
            json.dumps({"port": self._port, "cluster_id": self._cluster_id}), encoding="utf-8"
        )

    def command(self) -> list[str]:
        """The java command line of the prepared broker."""
        return [
            *self._java(*java_options(*_HEAP)),
            "kafka.Kafka",
            str(self._dir / "server.properties"),
        ]

    def start(self, timeout_s: float = 120) -> None:
        """Start and wait until it answers as the cluster formatted here.

        Raises BrokerError with the log's reason; ForeignBroker when another cluster answers.
        """
        if self.pid is not None:
            return
        self.prepare()
        self.refuse_foreign()
        self._log = (self._dir / "stdout.log").open("ab")
        self._process = spawn(self.command(), self._log, cwd=self._dir)
        deadline = time.monotonic() + timeout_s
        try:
            while not self.is_ready():
                if self._process.poll() is not None:
                    raise BrokerError(
                        f"the broker ended at once (exit code {self._process.returncode}): "
                        f"{self.reason()}"
                    )
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"the broker was not ready after {timeout_s:g} s: {self.reason()}"
                    )
                time.sleep(0.1)
        except BaseException:
            self.kill()
            raise

    def is_ready(self) -> bool:
        """Does it answer clients? Raises ForeignBroker when another cluster does."""
        answered = cluster_id_at(self.bootstrap)
        if answered is None:
            return False
        if answered != self._cluster_id:
            raise ForeignBroker(
                f"{self.bootstrap} answers as Kafka cluster {answered!r}, but {self._dir} was "
                f"formatted as {self._cluster_id!r}: nothing was written"
            )
        return True

    def refuse_foreign(self) -> None:
        """Before starting: raise ForeignBroker or BrokerError when our port is in use."""
        if not _listening(self._port):
            return
        if self.is_ready():
            raise BrokerError(f"this broker already runs on {self.bootstrap}: {self._dir}")
        raise ForeignBroker(
            f"port {self._port} is in use by something that is not Kafka; free it, or use "
            "another --dir"
        )

    def stop(self, timeout_s: float = 20) -> None:
        """Controlled shutdown (SIGTERM); killed when it takes longer than `timeout_s`."""
        self._signal(signal.SIGTERM)
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close_log()

    def kill(self) -> None:
        """SIGKILL, as a crash would; `start` brings the same broker back on the same port."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self._close_log()

    def reason(self) -> str:
        """The last error line of its log, for messages."""
        with contextlib.suppress(OSError):
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in reversed(lines[-400:]):
                if " ERROR " in line or " FATAL " in line:
                    return line
            if lines:
                return lines[-1]
        with contextlib.suppress(OSError):
            text = (self._dir / "stdout.log").read_text(encoding="utf-8", errors="replace")
            return text.strip().rsplit("\n", 1)[-1] or "it said nothing"
        return "it said nothing"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _java(self, *options: str) -> list[str]:
        return [
            str(require_java()),
            *options,
            f"-Dlog4j2.configurationFile={self._dir / 'log4j2.properties'}",
            "-cp",
            kafka_classpath(),
        ]

    def _format(self) -> None:
        properties = str(self._dir / "server.properties")
        options = ["-t", self._cluster_id, "-c", properties, "--ignore-formatted"]
        options += self._format_options()
        tool = self._java("-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
        run = subprocess.run(
            [*tool, "kafka.tools.StorageTool", "format", *options],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            said = (run.stderr or run.stdout).strip().rsplit("\n", 1)[-1]
            raise BrokerError(f"formatting {self._dir / 'data'} failed: {said}")

    def _format_options(self) -> list[str]:
        """More options of `kafka-storage format`: a subclass's users."""
        return []

    def _properties(self, controller_port: int) -> str:
        settings: dict[str, str | int] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{self._port},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self._port}",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self._dir / "data"),
            # A mistyped topic must be an error, not a new topic with the wrong settings.
            "auto.create.topics.enable": "false",
            "transaction.max.timeout.ms": TRANSACTION_TIMEOUT_MS_MAX,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "group.initial.rebalance.delay.ms": 0,
            # After a kill the controller takes the broker back only once its old session is over.
            "broker.session.timeout.ms": 4_000,
            "broker.heartbeat.interval.ms": 500,
            # Above the greatest events.bytes_max and its margin; topics set their own.
            "message.max.bytes": 104_857_600,
            "socket.request.max.bytes": 209_715_200,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.cleaner.dedupe.buffer.size": 33_554_432,
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())


def cluster_id_at(bootstrap: str, timeout_s: float = 3, **extra: str | int | float) -> str | None:
    """Cluster id of the broker that answers at `bootstrap`; None when none does in time."""
    if not extra and not any(
        _listening(int(address.rpartition(":")[2]), address.rpartition(":")[0] or HOST)
        for address in bootstrap.split(",")
    ):
        return None  # spares librdkafka's noise about a refused connection
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, **extra})
    try:
        found = admin.list_topics(timeout=timeout_s)
    except KafkaException:
        return None
    return str(found.cluster_id) if found.cluster_id and found.brokers else None


def _listening(port: int, host: str = HOST) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _free_ports(wanted: int) -> tuple[int, int]:
    """A client port (the wanted one, if not 0) and a controller port, free a moment ago."""
    with socket.socket() as client, socket.socket() as controller:
        try:
            client.bind((HOST, wanted))
        except OSError as error:
            raise BrokerError(f"port {wanted} is in use: {error.strerror}") from error
        controller.bind((HOST, 0))
        return client.getsockname()[1], controller.getsockname()[1]


def _new_cluster_id() -> str:
    """22 characters of URL-safe base64, as Kafka writes its UUIDs; never led by '-'."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode("ascii")
        if not text.startswith("-"):
            return text

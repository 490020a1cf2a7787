"""A standalone Flink cluster from the scripts in PyFlink's own wheel: one JobManager, and
TaskManagers of one slot each, on loopback; each is a process that a test may kill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

import pyflink

from runtime.child import spawn
from stream.errors import FlinkUnreachable
from stream.flink_rest import FlinkRest
from tests.join_process import wait_for

_HOME = Path(pyflink.__file__).parent
_SETTINGS = """\
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc}
jobmanager.bind-host: 127.0.0.1
blob.server.port: {blob}
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: {rest}
jobmanager.memory.process.size: 800m
jobmanager.memory.jvm-overhead.min: 64m
jobmanager.memory.off-heap.size: 64m
taskmanager.memory.process.size: 800m
taskmanager.memory.jvm-overhead.min: 64m
taskmanager.memory.managed.size: 32m
taskmanager.memory.network.min: 48m
taskmanager.memory.network.max: 48m
taskmanager.numberOfTaskSlots: 1
taskmanager.host: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
heartbeat.interval: 2000
heartbeat.timeout: 20000
pekko.startup-timeout: 300 s
pekko.ask.timeout: 60 s
io.tmp.dirs: {folder}/tmp
env.log.dir: {folder}/log
env.pid.dir: {folder}/pid
env.java.opts.all: -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData
"""


class FlinkCluster:
    """`with FlinkCluster(folder) as cluster: cluster.start(2)`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        rest, rpc, blob = _free_ports(3)
        self.address = f"127.0.0.1:{rest}"
        self.rest = FlinkRest(f"http://{self.address}")
        self._conf = folder / "conf"
        self._conf.mkdir(parents=True)
        for name in ("log", "pid", "tmp"):
            (folder / name).mkdir()
        (self._conf / "config.yaml").write_text(
            _SETTINGS.format(rest=rest, rpc=rpc, blob=blob, folder=folder), encoding="utf-8"
        )
        for name in ("log4j-console.properties", "logback-console.xml"):
            shutil.copy(_HOME / "conf" / name, self._conf)
        self.job_manager: subprocess.Popen[bytes] | None = None
        self.task_managers: list[subprocess.Popen[bytes]] = []

    def start(self, task_managers: int) -> None:
        """Returns once all have registered."""
        self.start_job_manager()
        for _ in range(task_managers):
            self.add_task_manager()
        wait_for("the TaskManagers", lambda: self._registered() >= task_managers, 600, self.said)

    def keep(self) -> None:
        """Start again what has ended by itself: on a very busy machine Flink's actor system gives
        up after ten seconds."""
        if self.job_manager is not None and self.job_manager.poll() is not None:
            self.start_job_manager()
        for number, process in enumerate(self.task_managers):
            if process.poll() is not None:
                self.task_managers[number] = self._spawn("taskmanager.sh")

    def start_job_manager(self) -> None:
        self.job_manager = self._spawn("jobmanager.sh")

    def add_task_manager(self) -> None:
        self.task_managers.append(self._spawn("taskmanager.sh"))

    def kill_task_manager(self, number: int) -> None:
        process = self.task_managers.pop(number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def kill_job_manager(self) -> None:
        assert self.job_manager is not None
        os.kill(self.job_manager.pid, signal.SIGKILL)
        self.job_manager.wait()

    def said(self) -> str:
        logs = sorted((self._folder / "log").glob("*"), key=lambda path: path.stat().st_mtime)
        text = "\n".join(
            f"== {path.name}\n{path.read_text(encoding='utf-8', errors='replace')[-2000:]}"
            for path in [self._folder / "console.log", *logs[-3:]]
            if path.exists()
        )
        return text[-6000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.task_managers, self.job_manager):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def _registered(self) -> int:
        self.keep()
        try:
            return self.rest.slots()[1]
        except FlinkUnreachable:
            return 0

    def _spawn(self, script: str) -> subprocess.Popen[bytes]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("JVM_ARGS", "FLINK_LOG_DIR", "HADOOP_CLASSPATH")
        }
        environment["FLINK_CONF_DIR"] = str(self._conf)
        with (self._folder / "console.log").open("ab") as log:
            return spawn(
                ["bash", str(_HOME / "bin" / script), "start-foreground"], log, env=environment
            )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

"""Each finding of `doctor`, provoked: what is wrong is named, and the line says how to mend it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from runtime import machine
from runtime.config_file import write_config
from runtime.diagnosis import diagnose
from runtime.finding import Finding
from runtime.jars import jar_home
from runtime.run_state import ChildState, RunState, write_run
from settings.config import Config
from topics.admin import ensure_topics
from topics.client import producer_settings

_SERVER = "import socket,time; s=socket.socket(); s.bind(({!r}, 0)); s.listen(); time.sleep(600)"


def found(findings: list[Finding], check: str) -> Finding:
    """The one finding of `check`; its line has a fix exactly where something is wrong."""
    [finding] = [f for f in findings if f.check == check]
    assert (finding.verdict == "problem") <= bool(finding.fix), finding
    return finding


def test_an_old_java_or_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text('#!/bin/sh\necho "openjdk version \\"11.0.2\\"" >&2\n')
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    old = found(diagnose(tmp_path, None), "java")
    assert old.verdict == "problem" and "is Java 11" in old.says and "JDK 17" in old.fix
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    none = found(diagnose(tmp_path, None), "java")
    assert none.verdict == "problem" and "not found" in none.says


@pytest.mark.slow
def test_jars_missing_changed_or_foreign_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jars = tmp_path / "jars"
    shutil.copytree(jar_home() / "flink", jars / "flink")
    monkeypatch.setenv("HEADWATER_JARS", str(jars))
    assert "run `make setup`" in found(diagnose(tmp_path, None), "jars of the broker").fix
    assert found(diagnose(tmp_path, None), "jars of the join").verdict == "ok"
    connector = next((jars / "flink").glob("flink-sql-connector-*"))
    damaged = bytearray(connector.read_bytes())
    damaged[1000] ^= 1
    connector.write_bytes(damaged)
    (jars / "flink" / "log4j-1.2.jar").write_bytes(b"")
    wrong = found(diagnose(tmp_path, None), "jars of the join")
    assert wrong.verdict == "problem" and "make jars" in wrong.fix
    assert f"{connector.name} is not the locked one" in wrong.says
    assert "log4j-1.2.jar does not belong there" in wrong.says


def test_a_full_disk_and_a_wrong_config_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "DISK_FREE_BYTES_MIN", 2**62)
    assert "GiB free" in found(diagnose(tmp_path, None), "disk").says
    config = tmp_path / "c.toml"
    config.write_text("[trainer]\ndevise = 'cpu'\n")
    wrong = found(diagnose(tmp_path, config), "config")
    assert wrong.verdict == "problem" and "did you mean 'device'" in wrong.says


def test_a_package_of_another_version_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = machine.importlib.metadata.version
    monkeypatch.setattr(
        machine.importlib.metadata,
        "version",
        lambda name: "2.2.0" if name == "apache-flink" else real(name),
    )
    wrong = found(diagnose(tmp_path, None), "versions")
    assert "apache-flink is 2.2.0, not 2.3.0" in wrong.says and "make setup" in wrong.fix


def test_where_the_command_line_alone_is_installed_no_java_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in the image `tools`, from which people look at a stack of containers."""
    real = machine.importlib.metadata.version

    def without_what_runs(name: str) -> str:
        if name in ("apache-flink", "torch", "rocksdict"):
            raise machine.importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(machine.importlib.metadata, "version", without_what_runs)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(machine, "DISK_FREE_BYTES_MIN", 0)
    findings = diagnose(tmp_path, None)
    assert {finding.verdict for finding in findings} == {"ok"}, findings
    assert "starts none" in found(findings, "versions").says


def _run(directory: Path, bootstrap: str, **children: ChildState) -> RunState:
    """A stack whose supervisor is this process."""
    config = directory / "config.toml"
    if not config.exists():
        write_config(Config(), config, comment="of a test")
    run = RunState(
        run_id="r",
        pid=os.getpid(),
        pid_created=psutil.Process().create_time(),
        started_ms=0,
        bootstrap=bootstrap,
        cluster_id="",
        topic_prefix="headwater",
        config=str(config),
        embedded=False,
        children=children,
    )
    write_run(directory, run)
    return run


def _child(state: str = "running", **fields: object) -> ChildState:
    known: dict[str, object] = {"pid": None, "restarts": 0, "reason": "", "log": "the.log"}
    return ChildState(state=state, **{**known, **fields})  # type: ignore[arg-type]


@pytest.fixture
def servers() -> Iterator[dict[str, int]]:
    """pids of two processes that listen: on loopback, and on every interface."""
    started = {
        host: subprocess.Popen([sys.executable, "-c", _SERVER.format(host)])
        for host in ("127.0.0.1", "0.0.0.0")
    }
    deadline = time.monotonic() + 120
    while not all(machine._listening(process.pid) for process in started.values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield {host: process.pid for host, process in started.items()}
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.slow
def test_processes_and_ports(servers: dict[str, int], tmp_path: Path) -> None:
    [(_, port)] = machine._listening(servers["127.0.0.1"])
    well = _child(pid=servers["127.0.0.1"], metrics_port=port)
    at = "127.0.0.1:1"
    _run(tmp_path, at, reader=well)
    findings = diagnose(tmp_path, None)
    assert found(findings, "ports").says == "1 in use, all on loopback"
    assert found(findings, "reader").verdict == "ok"
    assert "nobody answers at 127.0.0.1:1" in found(findings, "broker").says
    _run(tmp_path, at, reader=_child(pid=servers["0.0.0.0"], metrics_port=port))
    ports = [f for f in diagnose(tmp_path, None) if f.check == "ports"]
    assert any(f"nobody of the stack listens for reader (metrics, {port})" in f.says for f in ports)
    assert any("reachable from other machines: reader on 0.0.0.0" in f.says for f in ports)
    _run(tmp_path, at, trainer=_child("backoff", reason="exit code 1: no", restarts=2))
    down = found(diagnose(tmp_path, None), "trainer")
    assert "exit code 1: no" in down.says and down.fix == "read the.log"


@pytest.mark.kafka
@pytest.mark.slow
def test_what_the_broker_would_not_stand(kafka: str, prefix: str, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "kafka": {"topic_prefix": prefix, "bootstrap": kafka},
            "join": {"transaction_timeout": "2d"},
        }
    )
    file = tmp_path / "c.toml"
    write_config(config, file, comment="of a test")
    assert "not there yet" in found(diagnose(tmp_path, file), "topics").says
    ensure_topics(config, kafka)
    topic = config.topic("manifest")
    changed = ConfigResource(
        ResourceType.TOPIC,
        topic,
        incremental_configs=[
            ConfigEntry("segment.ms", "1000", incremental_operation=AlterConfigOpType.SET)
        ],
    )
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.incremental_alter_configs([changed]).values():
        future.result(60)
    producer = Producer(producer_settings(config, kafka))
    ahead_ms = int((time.time() + 100) * 1000)
    producer.produce(config.topic("impressions"), b"{}", timestamp=ahead_ms)
    assert producer.flush(120) == 0
    findings = diagnose(tmp_path, file)
    timeout = found(findings, "transaction timeout")
    assert timeout.verdict == "problem" and "172800000 ms, the broker allows" in timeout.says
    assert "segment.ms is 1000, not 600000" in found(findings, f"topic {topic}").says
    assert "after now" in found(findings, "clock").says
    _run(tmp_path, kafka)
    assert "answers as cluster" in found(diagnose(tmp_path, file), "broker").says

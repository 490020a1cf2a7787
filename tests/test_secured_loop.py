"""Join, trainer, reader and traffic on a broker with TLS, SCRAM and ACLs, each with its own
password: vectors come out, and no secret is in a log, a file, a page or a process list."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from downstream.reader import RepresentationReader
from runtime.config_file import write_config
from runtime.demo import demo_config
from runtime.machine import _is_loopback, _listening
from runtime.sources.simulated import SimulatedTraffic
from settings.config import Config
from settings.load import load_config
from tests.secured_broker import SecuredBroker
from topics.access import rights
from topics.admin import ensure_topics

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.flink,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get("HEADWATER_PROVE"), reason="takes a minute: make prove"),
]
HEADWATER = ("-m", "runtime.cli")


class Loop:
    """The processes of a stack, started one by one, each with an environment of its own."""

    def __init__(self, broker: SecuredBroker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        values = demo_config(SimulatedTraffic()).model_dump(mode="json", exclude_none=True)
        values["kafka"] |= {
            "bootstrap": broker.bootstrap,
            "extra": {
                **broker.connection(),
                "sasl.username": "env:KAFKA_USER",
                "sasl.password": "env:KAFKA_PASSWORD",
            },
        }
        self.config = folder / "config.toml"
        write_config(Config.model_validate(values), self.config, comment="of the secured loop")

    def environment(self, user: str) -> dict[str, str]:
        own = {"KAFKA_USER": user, "KAFKA_PASSWORD": self.broker.passwords[user]}
        return {**os.environ, **own}

    def start(self, user: str, *arguments: str) -> None:
        with (self.folder / f"{user}.log").open("wb") as log:
            self.processes[user] = subprocess.Popen(
                [sys.executable, *arguments, "--config", str(self.config)],
                env=self.environment(user),
                stdout=log,
                stderr=log,
            )

    def until(self, what: str, condition: Callable[[], object], seconds: float = 240.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            for user, process in self.processes.items():
                said = (self.folder / f"{user}.log").read_text(errors="replace")[-2000:]
                assert process.poll() is None, f"{user} ended: {said}"
            assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
            time.sleep(0.3)

    def ports(self) -> Iterator[tuple[str, int]]:
        for process in self.processes.values():
            yield from _listening(process.pid)

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    with SecuredBroker(tmp_path / "broker") as broker:
        folder = tmp_path / "loop"
        folder.mkdir()
        loop = Loop(broker, folder)
        config = load_config(loop.config, env={}).config
        broker.grant(rights(config))
        operator = config.kafka.model_copy(update={"extra": broker.extra("operator")})
        ensure_topics(config.model_copy(update={"kafka": operator}), broker.bootstrap)
        at = ("--bootstrap", broker.bootstrap)
        try:
            loop.start("join", "-m", "stream", "--state-dir", f"{folder}/join", "--metrics-port=0")
            loop.start("trainer", "-m", "trainer", *at, "--store", f"{folder}/store")
            loop.start("reader", "-m", "downstream")
            loop.start("producer", *HEADWATER, "simulate", "--rate", "40")
            yield loop
        finally:
            loop.close()


def test_a_whole_loop_runs_closed_and_shows_no_secret(loop: Loop) -> None:
    broker = loop.broker
    config = load_config(loop.config, env={}).config
    own = config.kafka.model_copy(update={"extra": broker.extra("reader")})
    config = config.model_copy(update={"kafka": own})
    with RepresentationReader(config, broker.bootstrap, ("user",)) as reader:
        loop.until("a vector", lambda: reader.count("user"))
        loop.until("a third version", lambda: (reader.version or 0) >= 3)
    ports = sorted(set(loop.ports()))
    assert len(ports) >= 4, ports  # three metrics pages and Flink's REST
    assert all(_is_loopback(host) for host, _ in ports), ports
    pages = [text for _, port in ports for text in _pages(port)]
    assert len(pages) >= 6
    shown = subprocess.run(
        [sys.executable, *HEADWATER, "config", "show", "--config", str(loop.config)],
        env=loop.environment("join"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "env:KAFKA_PASSWORD" in shown.stdout
    lists = [
        " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    ]
    secrets = [word.encode() for word in broker.passwords.values()]
    for what, text in [("page", t) for t in pages] + [("command line", t) for t in lists]:
        assert not any(word.decode() in text for word in secrets), f"a secret in a {what}: {text}"
    assert not any(word.decode() in shown.stdout + shown.stderr for word in secrets)
    loop.close()
    files = [file for file in loop.folder.rglob("*") if file.is_file()]
    leaks = [str(f) for f in files if any(word in f.read_bytes() for word in secrets)]
    assert len(files) > 20 and not leaks, leaks


def _pages(port: int) -> Iterator[str]:
    """Metrics, or what Flink's REST tells of itself and its jobs."""
    at = f"http://127.0.0.1:{port}"
    for path in ("/metrics", "/config", "/jobmanager/config", "/jobs/overview"):
        try:
            found = httpx.get(at + path, timeout=10)
        except httpx.HTTPError:
            return  # not a web server: the JVM's own
        if found.is_success:
            yield found.text
        if found.is_success and path == "/jobs/overview":
            for job in found.json()["jobs"]:
                for more in ("", "/config", "/plan", "/exceptions", "/checkpoints/config"):
                    yield httpx.get(f"{at}/jobs/{job['jid']}{more}", timeout=10).text

"""compose.yaml: what it promises can be read off it, and it runs in a real Docker engine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import yaml

from downstream.reader import RepresentationReader
from runtime.demo import demo_config
from runtime.run_state import now_ms
from runtime.sources.simulated import SimulatedTraffic
from settings.config import Config
from settings.load import load_config
from stream.__main__ import _arguments as stream_arguments
from tests.docker_engine import ROOT, Engine, why_not
from tests.prometheus import free_port, panels_without_data

REPORT = ROOT / "build" / "compose.json"
OURS = ("jobmanager", "taskmanager", "join", "trainer", "reader", "traffic")
PORTS = ("KAFKA", "FLINK", "JOIN", "TRAINER", "READER", "PROMETHEUS", "GRAFANA")


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())[
        "services"
    ]
    return found


def test_every_service_is_pinned_confined_and_on_loopback() -> None:
    for name, service in services().items():
        tag = service["image"].rpartition(":")[2]
        assert any(c.isdigit() for c in tag) and tag != "latest", f"{name}: {service['image']}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
        assert service["restart"] == "unless-stopped", name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service.get("healthcheck") or name == "traffic", name
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), f"{name} mounts {source}"
        for other in service.get("depends_on", {}):
            assert services()[other]["healthcheck"], f"{name} waits for {other}"
    for name in OURS:
        assert services()[name]["read_only"] and services()[name]["cap_drop"] == ["ALL"]


def test_every_image_of_ours_runs_as_nobody_special() -> None:
    lines = (ROOT / "deploy" / "docker" / "Dockerfile").read_text().splitlines()
    users: dict[str, str] = {}
    stage = ""
    for line in lines:
        if line.startswith("FROM "):
            stage = line.rpartition(" AS ")[2]
        elif line.startswith("USER "):
            users[stage] = line.removeprefix("USER ")
    assert users == dict.fromkeys(("tools", "join", "trainer"), "10001")


def test_the_config_is_the_demos_and_the_commands_are_understood() -> None:
    config = load_config(ROOT / "deploy" / "headwater.toml", env={}).config
    assert config == demo_config(SimulatedTraffic())
    stream_arguments([str(word) for word in services()["join"]["command"]])


def test_prometheus_scrapes_the_services_where_they_serve() -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in scraped["scrape_configs"]}
    for name in ("join", "trainer", "reader"):
        [static] = jobs[name]["static_configs"]
        [target] = static["targets"]
        port = target.removeprefix(f"{name}:")
        assert f"--metrics-port={port}" in services()[name]["command"]
    assert set(jobs["flink"]["dns_sd_configs"][0]["names"]) <= set(services())
    source = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    assert yaml.safe_load(source.read_text())["datasources"][0]["url"] == "http://prometheus:9090"


class Stack:
    """compose.yaml under a project and on ports of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.ports = {name: free_port() for name in PORTS}
        self._variables = {
            **{f"HEADWATER_{name}_PORT": str(port) for name, port in self.ports.items()},
            "HEADWATER_RATE": "30",
        }
        self._project = ["docker-compose", "-p", f"hw{os.getpid()}"]

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.ports['KAFKA']}"

    def compose(self, *arguments: str, timeout_s: float = 600) -> str:
        return self._engine.run([*self._project, *arguments], timeout_s, self._variables)

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service).strip()

    def inspect(self, service: str, what: str) -> str:
        return self._engine.docker("inspect", "-f", what, self.container(service)).strip()

    def health(self, service: str) -> str:
        return self.inspect(service, "{{.State.Health.Status}}")

    def memory_mib(self) -> dict[str, float]:
        """What each container uses, without its page cache."""
        found: dict[str, float] = {}
        for service in (*OURS, "kafka", "prometheus"):
            said = self._engine.docker(
                "stats", "--no-stream", "--format", "{{.MemUsage}}", self.container(service)
            )
            amount = said.split("/")[0].strip()
            unit = {"MiB": 1.0, "GiB": 1024.0, "KiB": 1 / 1024}[amount[-3:]]
            found[service] = round(float(amount[:-3]) * unit, 1)
        return found

    def prometheus(self, query: str) -> list[Any]:
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS']}/api/v1/query"
        found = httpx.get(url, params={"query": query}, timeout=20).json()
        assert found["status"] == "success", found
        return list(found["data"]["result"])


def _until(
    what: str, condition: Callable[[], object], stack: Stack, seconds: float = 300.0
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = stack.compose("logs", "--tail=15", "--no-color")
            pytest.fail(f"not in {seconds:g} s: {what}\n{stack.compose('ps')}\n{logs[-12000:]}")
        time.sleep(1)


@pytest.fixture
def stack() -> Iterator[tuple[Stack, dict[str, Any]]]:
    """Up from nothing, with what was measured on the way; nothing of it is left afterwards."""
    with Engine() as engine:
        report: dict[str, Any] = {"build_seconds": engine.build_images()}
        images = {service["image"] for service in services().values()}
        report["image_mib"] = {
            image: round(int(engine.docker("inspect", "-f", "{{.Size}}", image)) / 2**20)
            for image in sorted({*images, "python:3.11.13-slim-bookworm"})
            if engine.has(image)
        }
        stack = Stack(engine)
        began = time.monotonic()
        try:
            # Grafana's image is not to be had: its dashboards' queries are run below.
            wanted = [name for name in services() if name != "grafana"]
            stack.compose("--profile", "monitoring", "up", "-d", "--no-build", *wanted)
            report["up_seconds"] = round(time.monotonic() - began, 1)
            yield stack, {**report, "began": began}
        finally:
            stack.compose("--profile", "monitoring", "down", "-v", "--remove-orphans")
            left = engine.docker("ps", "-aq", "--filter", f"name=hw{os.getpid()}")
            assert not left.strip(), "containers are left"


def _config() -> Config:
    return load_config(ROOT / "deploy" / "headwater.toml", env={}).config


@pytest.mark.kafka
@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.timeout(5000)
@pytest.mark.skipif(not os.environ.get("HEADWATER_PROVE"), reason="minutes of building: make prove")
@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_it_runs_in_a_real_engine(stack: tuple[Stack, dict[str, Any]]) -> None:
    compose, report = stack
    began = report.pop("began")
    with RepresentationReader(_config(), compose.bootstrap, ("user",)) as reader:
        _until("a first vector", lambda: reader.count("user"), compose)
        _note(report, "first_vector_seconds", round(time.monotonic() - began, 1))
        _until("every service is healthy", lambda: _all_healthy(compose), compose)
        for name in OURS:
            assert compose.compose("exec", "-T", name, "id", "-u").strip() == "10001", name
        empty = panels_without_data(compose.prometheus, 200)
        assert not empty, "panels without data:\n" + "\n".join(empty)
        _note(report, "memory_mib", compose.memory_mib())
        for name in ("trainer", "jobmanager", "kafka", "taskmanager", "join", "reader"):
            back = {**report.get("back_seconds", {})}
            back[name] = _killed_and_back(compose, reader, name)
            _note(report, "back_seconds", back)
    before = _audited(compose)
    assert before["impressions"]["in"] and before["conversions"]["attributed"], before
    version = _newest_version(compose)
    compose.compose("--profile", "monitoring", "down")
    began = time.monotonic()
    compose.compose("up", "-d", "--no-build", *OURS)
    _until("a version behind the last", lambda: _newest_version(compose) > version, compose)
    _note(report, "up_again_seconds", round(time.monotonic() - began, 1))
    after = _audited(compose)
    assert after["impressions"]["in"] > before["impressions"]["in"]
    print(json.dumps(report, indent=2))  # noqa: T201  with -s: the figures


def _note(report: dict[str, Any], key: str, value: object) -> None:
    """Into the file at once: a run that fails later has still measured this."""
    report[key] = value
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")


def _inside(compose: Stack, *words: str) -> str:
    """What docs/containers.md tells people to run: the command line, in a container."""
    at = ("--bootstrap", "kafka:9094", "--config", "/etc/headwater/headwater.toml")
    return compose.compose("exec", "-T", "traffic", "headwater", *words, *at)


def _audited(compose: Stack) -> dict[str, Any]:
    """The audit's report; exit code 1, where it does not balance, is an AssertionError."""
    report: dict[str, Any] = json.loads(_inside(compose, "audit", "--json"))
    assert report["balanced"], report
    return report


def _newest_version(compose: Stack) -> int:
    lines = _inside(compose, "consume", "manifest", "--to-end", "--jsonl").splitlines()
    return int(json.loads(lines[-1])["version"])


def _all_healthy(compose: Stack) -> bool:
    checked = [name for name, service in services().items() if "healthcheck" in service]
    return all(compose.health(name) == "healthy" for name in checked if name != "grafana")


def _killed_and_back(compose: Stack, reader: RepresentationReader, name: str) -> float:
    """kill -9 of the container's process; seconds until it is healthy again and a vector of an
    event after that is here: what was under way when it died does not count."""
    before, began = compose.inspect(name, "{{.State.Pid}}"), time.monotonic()
    # From outside the container, as a crash: `docker kill` would count as a stop by a person.
    os.kill(int(before), 9)

    def healthy_again() -> bool:
        pid, health = compose.inspect(name, "{{.State.Pid}} {{.State.Health.Status}}").split()
        return pid not in (before, "0") and health == "healthy"

    _until(f"{name} is healthy after it was killed", healthy_again, compose, 300)
    healthy_ms = now_ms()

    def fresh() -> bool:
        manifest = reader.manifest
        return manifest is not None and manifest.event_ms > healthy_ms

    _until(f"vectors of events after {name} returned", fresh, compose, 300)
    assert int(compose.inspect(name, "{{.RestartCount}}")) >= 1
    return round(time.monotonic() - began, 1)

"""Dashboards and alerts against the real Prometheus: every panel of a running stack shows data."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.sources.simulated import SimulatedTraffic
from tests.test_stack import CONFIG, HEADWATER, _run, _until

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
RUNBOOKS = Path(__file__).parents[1] / "docs" / "runbooks.md"
_here = shutil.which("prometheus") is not None and shutil.which("promtool") is not None
needs_prometheus = pytest.mark.skipif(
    not _here, reason="prometheus and promtool are not installed (Debian: apt install prometheus)"
)


def dashboards() -> dict[str, Any]:
    files = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def test_dashboards_are_what_their_tables_give() -> None:
    made = subprocess.run(
        [sys.executable, str(DEPLOY / "grafana" / "make_dashboards.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert set(dashboards()) == {"overview", "join", "trainer", "store", "publication"}


def test_panels_do_not_overlap_and_none_is_without_a_query() -> None:
    for name, board in dashboards().items():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, f"{name}: {panel['title']} covers another panel"
            assert at["x"] + at["w"] <= 24
            taken |= cells
            assert panel["targets"], panel["title"]


def test_every_alert_has_its_runbook() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    named = set(re.findall(r"runbooks\.md#(\w+)", RULES.read_text()))
    written = set(re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE))
    assert {a.lower() for a in alerts} == named == {w.lower() for w in written}


@needs_prometheus
def test_alert_rules_fire_and_keep_quiet_as_said() -> None:
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        ran = subprocess.run(
            ["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


class Prometheus:
    """A real one over a stack's ports."""

    def __init__(self, directory: Path, config: str) -> None:
        directory.mkdir()
        (directory / "prometheus.yml").write_text(config.replace('"5s"', '"1s"'))
        self._log = (directory / "log").open("wb")
        self.port = _free_port()
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}"
        answer = httpx.get(url, params=query, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Path]:
    """A stack with traffic going through it, of all faults."""
    config, directory = tmp_path / "c.toml", tmp_path / "stack"
    config.write_text(CONFIG)
    source = SimulatedTraffic(start_ms=time.time_ns() // 1_000_000 - 120_000, impressions_max=3000)
    files = {n: (tmp_path / f"{n}.jsonl").open("wb") for n in ("impressions", "conversions")}
    for event in source.events():
        files[event.stream].write(event.line + b"\n")
    for file in files.values():
        file.close()
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [*HEADWATER, "up", "--dir", str(directory), "--config", str(config)],
            stdout=log,
            stderr=log,
        )
    try:
        _until(lambda: b"\nup: Kafka at" in (tmp_path / "up.log").read_bytes(), 250, "up")
        producers = [
            subprocess.Popen(
                [
                    *HEADWATER,
                    *("produce", name, str(tmp_path / f"{name}.jsonl")),
                    *("--dir", str(directory), "--rate", rate),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for name, rate in (("impressions", "60"), ("conversions", "12"))
        ]
        yield directory
        for producer in producers:
            producer.kill()
            producer.wait()
    finally:
        _run("down", "--dir", str(directory))
        up.wait(60)


@needs_prometheus
@pytest.mark.kafka
@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_panel_of_a_running_stack_has_data(stack: Path, tmp_path: Path) -> None:
    config = _run("status", "--dir", str(stack), "--prometheus", "--rules", str(RULES))
    assert config.returncode == 0, config.stderr
    prometheus = Prometheus(tmp_path / "prometheus", config.stdout)
    panels = {
        (name, panel["title"], target["expr"]): False
        for name, board in dashboards().items()
        for panel in board["panels"]
        for target in panel["targets"]
    }
    try:
        ends = time.monotonic() + 200
        while not all(panels.values()) and time.monotonic() < ends:
            time.sleep(2)
            for name, title, query in [at for at, seen in panels.items() if not seen]:
                try:
                    panels[name, title, query] = bool(
                        prometheus.ask("query", query=query)["result"]
                    )
                except httpx.HTTPError:
                    break  # not up yet
        empty = [
            f"{name}: {title}: {query}" for (name, title, query), seen in panels.items() if not seen
        ]
        assert not empty, "panels without data:\n" + "\n".join(empty)
        rules = [r for g in prometheus.ask("rules")["groups"] for r in g["rules"]]
        assert {r["health"] for r in rules} == {"ok"}, rules
        targets = prometheus.ask("targets")["activeTargets"]
        assert {t["labels"]["job"] for t in targets} == {"join", "trainer", "reader"}
    finally:
        prometheus.close()

"""A real Prometheus, and what it is asked: every query of every dashboard."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
_here = shutil.which("prometheus") is not None and shutil.which("promtool") is not None
needs_prometheus = pytest.mark.skipif(
    not _here, reason="prometheus and promtool are not installed (Debian: apt install prometheus)"
)


def dashboards() -> dict[str, Any]:
    files = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def panels_without_data(query: Callable[[str], list[Any]], seconds: float) -> list[str]:
    """Every panel's query, asked again and again until each had data or the time is over."""
    left = {
        f"{name}: {panel['title']}: {target['expr']}": target["expr"]
        for name, board in dashboards().items()
        for panel in board["panels"]
        for target in panel["targets"]
    }
    ends = time.monotonic() + seconds
    while left and time.monotonic() < ends:
        time.sleep(2)
        try:
            left = {what: asked for what, asked in left.items() if not query(asked)}
        except httpx.TransportError:
            continue  # not up yet
    return [*left]


class Prometheus:
    """A real one over a stack's ports."""

    def __init__(self, directory: Path, config: str) -> None:
        directory.mkdir()
        (directory / "prometheus.yml").write_text(config.replace('"5s"', '"1s"'))
        self._log = (directory / "log").open("wb")
        self.port = free_port()
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

    def query(self, asked: str) -> list[Any]:
        return list(self.ask("query", query=asked)["result"])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])

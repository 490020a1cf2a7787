"""compose.yaml's own Kafka in a container, by testcontainers: for the integration tests where an
engine is there that has its image. Nothing is pulled for a test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from runtime.broker import cluster_id_at
from tests.prometheus import free_port

_COMPOSE = Path(__file__).parents[1] / "compose.yaml"


def _service() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(_COMPOSE.read_text())["services"]["kafka"]
    return found


def is_there() -> bool:
    """An engine answers, and it has the image of compose.yaml's Kafka."""
    if shutil.which("docker") is None:
        return False
    asked = ["docker", "image", "inspect", _service()["image"]]
    return subprocess.run(asked, capture_output=True, timeout=20, check=False).returncode == 0


@contextmanager
def container_broker() -> Iterator[str]:
    """Its bootstrap address; the container is gone afterwards."""
    # Its reaper is one more image to pull; the container is removed here.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.container import DockerContainer

    service, port = _service(), free_port()
    container = DockerContainer(service["image"])
    container.ports["9092/tcp"] = ("127.0.0.1", port)  # with_bind_ports knows no address
    for name, value in service["environment"].items():
        container = container.with_env(name, str(value))
    at = f"127.0.0.1:{port}"
    container = container.with_env(
        "KAFKA_ADVERTISED_LISTENERS", f"INTERNAL://localhost:9094,HOST://{at}"
    )
    with container:
        deadline = time.monotonic() + 120
        while cluster_id_at(at) is None:
            assert time.monotonic() < deadline, b"".join(container.get_logs()).decode()[-3000:]
            time.sleep(0.2)
        yield at

"""A real Docker engine for the compose test: the one that answers, or one of our own from Debian's
packages; and stand-ins that carry the public images' names where those cannot be pulled.

What stands in: a Debian base made by debootstrap with its own Python for `python:…-slim-bookworm`,
the Maven broker set up by KafkaDockerWrapper for `apache/kafka`, Debian's Prometheus. Our own
images are then built by the very Dockerfile that users build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from runtime.jars import jar_home

ROOT = Path(__file__).parents[1]
STAND_INS = ROOT / "tests" / "stand_ins"
BASE = "headwater-test/bookworm"
_CERTIFICATES = Path("/usr/local/share/ca-certificates")
_BUILD_S = 3000


def why_not() -> str | None:
    """Why no engine can be had here, or None."""
    if shutil.which("docker-compose") is None:
        return "no Docker engine: apt install docker.io docker-compose brings one"
    if _answers(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")):
        return None
    if shutil.which("dockerd") is None:
        return "no Docker engine answers, and dockerd is not installed"
    return None if os.geteuid() == 0 else "no Docker engine answers, and only root can start one"


class Engine:
    """`with Engine() as engine: engine.docker("ps")`. Started here, it is stopped and removed."""

    def __init__(self) -> None:
        self._given = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = dict(os.environ, DOCKER_BUILDKIT="0", COMPOSE_DOCKER_CLI_BUILD="0")
        self.environment["DOCKER_HOST"] = self._given

    def __enter__(self) -> Self:
        if _answers(self._given):
            return self
        self._folder = folder = Path(tempfile.mkdtemp(prefix="hw-docker-"))
        host = f"unix://{folder}/docker.sock"
        roots = ["--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["dockerd", *roots, "-H", host, "-p", str(folder / "pid")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while not _answers(host):
            assert self._process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "dockerd does not answer"
            time.sleep(0.5)
        self.environment["DOCKER_HOST"] = host
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._folder is not None:
            self._process.terminate()
            self._process.wait(60)
            # dockerd leaves its host network's namespace mounted
            left = ["umount", str(self._folder / "exec" / "netns" / "default")]
            subprocess.run(left, capture_output=True, check=False)
            shutil.rmtree(self._folder, ignore_errors=True)

    def docker(self, *arguments: str, timeout_s: float = _BUILD_S) -> str:
        """stdout of `docker …`."""
        return self.run(["docker", *arguments], timeout_s)

    def run(
        self, command: list[str], timeout_s: float, variables: Mapping[str, str] | None = None
    ) -> str:
        """stdout; raises AssertionError with what it said."""
        ran = subprocess.run(
            command,
            env={**self.environment, **(variables or {})},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert ran.returncode == 0, f"{' '.join(command)}:\n{(ran.stdout + ran.stderr)[-4000:]}"
        return ran.stdout

    def has(self, image: str) -> bool:
        return bool(self.docker("images", "-q", image).strip())

    def build_images(self) -> dict[str, float]:
        """Everything that compose.yaml names, ours from their Dockerfile; image -> its seconds.

        HEADWATER_IMAGES=there takes ours as they are.
        """
        services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
        public = [s["image"] for s in services.values() if "build" not in s]
        took: dict[str, float] = {}
        for image in ["python:3.11.13-slim-bookworm", *public]:
            name = image.split(":")[0].split("/")[-1]
            if (STAND_INS / f"{name}.Dockerfile").exists() and not self.has(image):
                self._stand_in(image, name)
        for service in services.values():
            build = service.get("build")
            if build and os.environ.get("HEADWATER_IMAGES") == "there":
                assert self.has(service["image"]), f"{service['image']} is not there"
            elif build and service["image"] not in took:
                began = time.monotonic()
                options = ["--target", build["target"], "-t", service["image"]]
                if build["target"] == "trainer":
                    # torch's CPU index is not a package registry: what is built is the other one
                    options += ["--build-arg", "TORCH=cuda"]
                file = str(ROOT / build["dockerfile"])
                self.docker("build", "-q", "--network=host", "-f", file, *options, str(ROOT))
                took[service["image"]] = time.monotonic() - began
        return took

    def _stand_in(self, image: str, name: str) -> None:
        if not self.has(BASE):
            self._base()
        with tempfile.TemporaryDirectory() as context:
            at = Path(context)
            shutil.copytree(STAND_INS, at, dirs_exist_ok=True)
            (at / "certificates").mkdir()
            for certificate in _CERTIFICATES.glob("*.crt"):
                shutil.copy(certificate, at / "certificates")
            if name == "kafka":
                shutil.copytree(jar_home() / "kafka", at / "jars")
            file = str(at / f"{name}.Dockerfile")
            self.docker("build", "-q", "--network=host", "-t", image, "-f", file, str(at))

    def _base(self) -> None:
        assert shutil.which("debootstrap"), (
            "debootstrap is needed (Debian: apt install debootstrap)"
        )
        with tempfile.TemporaryDirectory() as folder:
            self.run(["debootstrap", "--variant=minbase", "bookworm", folder], _BUILD_S)
            archive = Path(folder).with_suffix(".tar")
            try:
                self.run(["tar", "-C", folder, "-cf", str(archive), "."], _BUILD_S)
                self.docker("import", str(archive), BASE)
            finally:
                archive.unlink(missing_ok=True)


def _answers(host: str) -> bool:
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(
        ["docker", "-H", host, "version", "-f", "{{.Server.Version}}"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    return asked.returncode == 0

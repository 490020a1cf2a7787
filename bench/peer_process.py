"""A peer in a process and an environment of its own, that takes turns with ours.

`bench/peers/NAME/` holds `peer.py` and, where the peer does not resolve beside us, a pyproject.toml
with its uv.lock; that environment is made under `build/peers/NAME` on first use. A peer without one
runs in ours. The protocol is drawn in `bench/peers/turns.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from measuring import say

_BENCH = Path(__file__).resolve().parent
_ENVIRONMENTS = _BENCH.parent / "build" / "peers"
_INSTALL_SECONDS = 1200
_LAST_LINES = 3
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "1"
)
_END_SECONDS = 5.0


class PeerAbsent(RuntimeError):
    """The peer cannot be measured here; the text says why."""


class Peer:
    """A running peer: make it, let it prepare, let it take turns, close it."""

    def __init__(self, name: str, *, install: bool = True) -> None:
        """Start `name`, which then loads its libraries; raises PeerAbsent.

        `install` False = do not make an environment that is not there yet.
        """
        self.name = name
        self.told: dict[str, Any] = {}
        """What it says of itself once prepared: version, mode, resident_bytes."""
        python = _environment(name, install=install)
        self._folder = tempfile.TemporaryDirectory(prefix=f"headwater-peer-{name}-")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        answers, for_child = os.pipe()
        self._process = subprocess.Popen(
            [str(python), str(_BENCH / "peers" / name / "peer.py")],
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=(for_child,),
            env={
                **os.environ,
                **_ONE_THREAD,
                "PYTHONPATH": f"{_BENCH}:{_BENCH / 'peers'}",
                "HEADWATER_ANSWERS": str(for_child),
                "CUDA_VISIBLE_DEVICES": "",
            },
        )
        os.close(for_child)
        self._answers = os.fdopen(answers, "rb")

    def prepare(self, request: dict[str, Any]) -> None:
        """Build its table by `request` (see `turns`); raises PeerAbsent."""
        self.told = self._ask({"do": "prepare", "directory": self._folder.name, **request})

    def steps(self, first: int, steps: int) -> float:
        """Milliseconds per step of steps `first` and on; raises PeerAbsent if it died."""
        return float(self._ask({"do": "steps", "first": first, "steps": steps})["ms"])

    def close(self) -> None:
        """End it and remove what it wrote."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._errors.close()
        self._folder.cleanup()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        line = self._answers.readline()
        answer: dict[str, Any] = json.loads(line) if line.strip() else {"error": self._last_words()}
        if "error" in answer:
            raise PeerAbsent(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"exit code {self._process.returncode}: {' | '.join(lines[-_LAST_LINES:])}"


def _environment(name: str, *, install: bool) -> Path:
    """The Python that runs the peer."""
    project = _BENCH / "peers" / name
    if not (project / "pyproject.toml").is_file():
        return Path(sys.executable)
    folder = _ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / ".ready"
    locked = hashlib.sha256((project / "uv.lock").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == locked and python.is_file():
        return python
    if not install:
        raise PeerAbsent(
            f"{name}: its environment is not made; a run without --quick makes it in {folder}"
        )
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if uv is None:
        raise PeerAbsent(f"{name}: uv, which makes its environment, was not found; run make setup")
    say(f"making the environment of {name} in {folder} (once)")
    command = [uv, "sync", "-q", "--frozen", "--project", str(project), "--python", "3.11"]
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder)}
    environment.pop("VIRTUAL_ENV", None)
    try:
        subprocess.run(
            command, env=environment, check=True, timeout=_INSTALL_SECONDS, capture_output=True
        )
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise PeerAbsent(f"{name}: its environment could not be made: {' | '.join(last)}") from None
    except subprocess.TimeoutExpired:
        raise PeerAbsent(
            f"{name}: its environment was not made in {_INSTALL_SECONDS} s; run again"
        ) from None
    stamp.write_text(locked)
    return python

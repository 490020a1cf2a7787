"""A real trainer of a real broker, for tests that steer it while it runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import tomlkit

from settings.config import Config
from settings.load import load_config
from tests.sample_stream import config_toml
from topics.admin import ensure_topics
from topics.errors import TopicUnavailable
from topics.lag import committed_offsets
from topics.manifest import Manifest, decode_manifest
from topics.names import MANIFEST, SAMPLES, trainer_group
from topics.scan import end_offsets, read_to_end


class LiveTrainer:
    """`python -m trainer` over `store`, cut by time; killed at the end of the block."""

    def __init__(self, folder: Path, kafka: str, prefix: str, **sections: Mapping[str, Any]):
        values = tomlkit.parse(config_toml(prefix, cut_by="time", commit_every="200ms")).unwrap()
        self.config_file = folder / "c.toml"
        self.config_file.write_text(tomlkit.dumps(values | sections), encoding="utf-8")
        self.config: Config = load_config(self.config_file, env={}).config
        self.bootstrap, self.store = kafka, folder / "store"
        ensure_topics(self.config, kafka)
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "trainer", "--config", str(self.config_file)),
                *("--bootstrap", self.bootstrap, "--store", str(self.store)),
            ]
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(180) == 0

    def manifests(self) -> list[Manifest]:
        return [
            decode_manifest(message.value() or b"")
            for _, message in read_to_end(self.config, self.bootstrap, [MANIFEST])
        ]

    def await_learnt(self) -> None:
        """Until a commit holds every sample that is there now."""
        end = end_offsets(self.config, self.bootstrap, [SAMPLES])[SAMPLES, 0]
        committed = committed_offsets(
            self.config, self.bootstrap, trainer_group(self.config), (SAMPLES,)
        )
        # behind the last sample comes the marker of its transaction
        self.until(lambda: committed().get((SAMPLES, 0), 0) >= end - 1)

    def await_published(self) -> Manifest:
        """Until a version holds every sample that is there now; the newest one."""
        end = end_offsets(self.config, self.bootstrap, [SAMPLES])[SAMPLES, 0]
        self.until(
            lambda: any(m.source_offsets[SAMPLES].get(0, 0) >= end - 1 for m in self.manifests())
        )
        return self.manifests()[-1]

    def until(self, reached: Callable[[], bool], seconds: float = 200) -> None:
        ends = time.monotonic() + seconds
        while not _said(reached):
            assert self.process is not None and self.process.poll() is None, "the trainer ended"
            assert time.monotonic() < ends, "it did not come"
            time.sleep(0.2)

    def headwater(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One verb of the command line, on this stack."""
        return subprocess.run(
            [
                *(sys.executable, "-m", "runtime.cli", *arguments),
                *("--bootstrap", self.bootstrap, "--config", str(self.config_file)),
            ],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


def _said(reached: Callable[[], bool]) -> bool:
    """Not yet, where the broker does not answer just now."""
    try:
        return reached()
    except TopicUnavailable:
        return False

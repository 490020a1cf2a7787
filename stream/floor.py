"""The watermark that the join must not fall below when Flink restarts it by itself.

Flink does not checkpoint watermarks. After a restart inside a process the operator has none until
every partition has brought an event, and a late event, or the duplicate of one long decided, would
pass for a timely one. So while the join runs this notes in a file of the state directory which
watermark a completed checkpoint holds at least, and the operator reads it when it opens. (Across
processes the outputs say it: `stream.restore.reached_watermark_ms`.)

A watermark that was seen before a checkpoint began is in that checkpoint. At most one is under way
at a time, so after the next but one has completed that is certain. A crash while writing costs
nothing: the file is replaced whole. Without this process (a detached cluster job) it gets old, and
an old floor is only a lower one.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import httpx
import structlog

FILE = "watermark"
_LOOK_SECONDS = 1.0
_END_OF_INPUT_MS = 2**62
_WATERMARK = re.compile(r"\.headwater\.watermark_ms$")
_log = structlog.get_logger()


class WatermarkFloor:
    """Looks once a second, in a thread that dies with the process."""

    def __init__(self, rest: str, job_id: str, state_dir: Path) -> None:
        self._client = httpx.Client(base_url=rest, timeout=2.0)
        self._job = f"/jobs/{job_id}"
        self._path = state_dir / FILE
        self._metric: tuple[str, str] | None = None
        self._seen: tuple[int, int] | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="watermark-floor", daemon=True).start()

    def stop(self) -> None:
        """The job is about to end: its last watermark says nothing."""
        self._stopping.set()

    def look(self) -> None:
        """Note what the completed checkpoints hold by now. Raises httpx.HTTPError."""
        counts = self._ask(f"{self._job}/checkpoints")
        completed = int((counts["latest"]["completed"] or {"id": 0})["id"])
        if self._seen is not None and completed >= self._seen[0] + 2:
            part = self._path.with_suffix(".part")
            part.write_text(f"{self._seen[1]}\n", encoding="ascii")
            part.replace(self._path)
            self._seen = None
        if self._seen is None:
            watermark_ms = self._watermark_ms()
            if watermark_ms is not None:
                self._seen = (completed, watermark_ms)

    def _watermark_ms(self) -> int | None:
        """The least of the subtasks'; None while one has none, and at the end of bounded input."""
        if self._metric is None:
            self._metric = self._find()
        if self._metric is None:
            return None
        path, name = self._metric
        found = self._ask(path, get=name, agg="min")
        watermark_ms = int(float(found[0]["min"])) if found else -1
        return watermark_ms if 0 <= watermark_ms < _END_OF_INPUT_MS else None

    def _find(self) -> tuple[str, str] | None:
        for vertex in self._ask(self._job)["vertices"]:
            path = f"{self._job}/vertices/{vertex['id']}/subtasks/metrics"
            for found in self._ask(path):
                if _WATERMARK.search(found["id"]):
                    return path, found["id"]
        return None

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self.look()
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self._seen = None  # a restart may lie between what was seen and what comes
                _log.debug("watermark_not_seen", error=str(error))
            except OSError as error:  # a full disk: the floor stays where it is
                _log.warning("watermark_not_kept", error=str(error))

    def _ask(self, path: str, **query: str) -> Any:
        return self._client.get(path, params=query).raise_for_status().json()

"""Train over a file of samples: the loop of the stream, with nothing to publish."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from settings.config import Config
from trainer.feed import Feed, PortionSource
from trainer.feed_process import FeedProcess, file_order
from trainer.loop import Loop
from trainer.models.catalogue import check_model_name
from trainer.opening import open_store
from trainer.source import FileSource

_FILE_BYTES_OF_ONE_PROCESS = 8_000_000


def run_bounded(samples: Path, config: Config, store: Path | None) -> dict[str, Any]:
    """Predict, then learn, every sample of the file once; returns the report.

    With `store` None the rows live in a temporary directory; with a directory, a run that was cut
    off continues where its last commit is. Keys of the report: progressive {task: {auc, gauc, ne,
    pcoc, samples, positives}}, progressive_by_domain, progressive_by_window (window's start in
    event ms), samples {state: n}, samples_per_second, rows_by_slot, rows, steps, rejected,
    arms {live, daily, frozen: ...} under evaluation.arms, drifts [{task, measure, window_ms}].
    Raises OSError, TrainerError, StoreError, ConfigError.
    """
    if store is None:
        with tempfile.TemporaryDirectory(prefix="headwater-train-") as folder:
            return run_bounded(samples, config, Path(folder))
    check_model_name(config.model.name)
    with open_store(config, store, owner="headwater train") as opened:
        loop = Loop(config, opened, sink=None)
        before = sum(loop.progress.samples.values())
        source = _feed(samples, config, loop)
        started = time.perf_counter()
        try:
            loop.run(source)
        finally:
            source.close()
        seconds = time.perf_counter() - started
        progress, report = loop.progress, loop.evaluation.report()
        return {
            "model": config.model.name,
            "device": config.trainer.device,
            "progressive": report["overall"],
            "progressive_by_domain": report["by_domain"],
            "progressive_by_window": report["by_window"],
            "samples": dict(sorted(progress.samples.items())),
            "samples_per_second": (sum(progress.samples.values()) - before) / seconds,
            "seconds": seconds,
            "steps": progress.step,
            "rows": opened.stats().rows_total,
            "rows_by_slot": dict(sorted(progress.rows_created.items())),
            "rejected": progress.rejected,
            "unseen_finals": progress.unseen_finals,
            "arms": {} if loop.arms is None else loop.arms.report(),
            "drifts": [
                {"task": d.task, "measure": d.measure, "window_ms": d.window_ms}
                for d in (loop.drifts.alarms if loop.drifts is not None else ())
            ],
        }


def _feed(samples: Path, config: Config, loop: Loop) -> PortionSource:
    """A process of its own reads a file that is worth its start of a third of a second."""
    if samples.stat().st_size < _FILE_BYTES_OF_ONE_PROCESS:
        return Feed(FileSource(samples, loop.progress.offsets), loop.plan, config.trainer)
    return FeedProcess(file_order(config, samples, loop.progress.offsets), loop.plan, lambda: False)

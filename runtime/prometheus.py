"""A Prometheus configuration for a local stack, whose processes serve metrics on free ports."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.broker import HOST
from runtime.run_state import RunState

SCRAPE_SECONDS = 5


def scrape_config(
    run: RunState, *, rules: Path | None, scrape_seconds: int = SCRAPE_SECONDS
) -> str:
    """prometheus.yml as JSON, which is YAML: one job per process, named as the dashboards and
    alerts expect (join, trainer, reader), with `rules` if given."""
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [f"{HOST}:{child.metrics_port}"]}]}
        for name, child in sorted(run.children.items())
        if child.metrics_port is not None
    ]
    interval = f"{scrape_seconds}s"
    found = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [] if rules is None else [str(rules.resolve())],
        "scrape_configs": jobs,
    }
    return json.dumps(found, indent=2) + "\n"

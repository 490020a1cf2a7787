"""The join's /metrics: counts and watermark from Flink's REST, lag from the committed offsets.

Flink's own Prometheus reporter does not load in PyFlink's embedded cluster, and its names are not
ours; its REST has the same numbers under the same names in a real cluster.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from settings.config import Config
from topics.lag import LagMonitor, committed_offsets
from topics.metrics import MetricsServer
from topics.names import STREAMS, join_group

VERDICTS = {
    "impressions": ("sampled", "late", "duplicate", "undecodable"),
    "conversions": ("attributed", "late", "orphan", "duplicate", "undecodable"),
}
"""Where every event of a stream ends, as the operator counts it since it last started."""
_OURS = re.compile(r"\.headwater\.(\w+)$")
_UNSET_MS = -(2**63)
_log = structlog.get_logger()


class JoinMetrics(Collector):
    """Asks Flink's REST at each scrape; while it does not answer there are no join metrics."""

    def __init__(self, rest_port: int, job_id: str) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{rest_port}", timeout=2.0)
        self._job = f"/jobs/{job_id}"

    def unhealthy(self) -> str | None:
        """Why the join is not running, or None."""
        try:
            state = self._ask(self._job)["state"]
        except (httpx.HTTPError, KeyError, ValueError) as error:
            return f"Flink does not answer: {error}"
        return None if state == "RUNNING" else f"the job is {state}"

    def collect(self) -> Iterator[Metric]:
        try:
            yield from self._collect()
        except (httpx.HTTPError, KeyError, ValueError) as error:
            _log.warning("join_metrics_unknown", error=str(error))

    def _collect(self) -> Iterator[Metric]:
        job = self._ask(self._job)
        restarts = self._ask(f"{self._job}/metrics", get="numRestarts")
        count = CounterMetricFamily(
            "headwater_join_restarts", "Times that Flink restarted the job by itself"
        )
        count.add_metric([], sum(float(found["value"]) for found in restarts))
        yield count
        for vertex in job["vertices"]:
            path = f"{self._job}/vertices/{vertex['id']}"
            ids = {
                match.group(1): found["id"]
                for found in self._ask(f"{path}/subtasks/metrics")
                if (match := _OURS.search(found["id"]))
            }
            if ids:
                yield from _operator_metrics(self._aggregates(path, ids))
                yield from self._watermark(path)

    def _aggregates(self, path: str, ids: dict[str, str]) -> dict[str, dict[str, float]]:
        """Our name -> {sum, max} over the operator's subtasks."""
        answer = self._ask(f"{path}/subtasks/metrics", get=",".join(ids.values()), agg="sum,max")
        by_id = {found["id"]: found for found in answer}
        return {name: by_id[key] for name, key in ids.items() if key in by_id}

    def _watermark(self, path: str) -> Iterator[Metric]:
        marks = [int(float(mark["value"])) for mark in self._ask(f"{path}/watermarks")]
        if not marks or min(marks) <= _UNSET_MS:
            return
        yield GaugeMetricFamily(
            "headwater_watermark_ms", "Event time up to which the join has decided", min(marks)
        )
        yield GaugeMetricFamily(
            "headwater_watermark_lag_seconds",
            "Wall clock minus watermark",
            time.time() - min(marks) / 1000,
        )

    def _ask(self, path: str, **query: str) -> Any:
        return self._client.get(path, params=query).raise_for_status().json()


def _operator_metrics(found: dict[str, dict[str, float]]) -> Iterator[Metric]:
    events = CounterMetricFamily(
        "headwater_join_events", "Events by where they ended", labels=["stream", "verdict"]
    )
    for stream, verdicts in VERDICTS.items():
        for verdict in verdicts:
            value = found.get(f"{stream}_{verdict}", {}).get("sum", 0.0)
            events.add_metric([stream, verdict], value)
    yield events
    rows = CounterMetricFamily("headwater_join_samples", "Sample records written, of any state")
    rows.add_metric([], found.get("impressions_sample_rows", {}).get("sum", 0.0))
    yield rows
    newest = found.get("newest_event_ms", {}).get("max", -1)
    if newest >= 0:
        yield GaugeMetricFamily(
            "headwater_last_event_timestamp_seconds", "Newest event time joined", newest / 1000
        )
    latency = HistogramMetricFamily(
        "headwater_stage_latency_seconds", "Produced to attributed", labels=["stage"]
    )
    bounds = sorted(
        int(name.removeprefix("latency_le_")) for name in found if name.startswith("latency_le_")
    )
    buckets = [(f"{ms / 1000:g}", found[f"latency_le_{ms}"]["sum"]) for ms in bounds]
    total = found.get("latency_count", {}).get("sum", 0.0)
    latency.add_metric(
        ["join"],
        [*buckets, ("+Inf", total)],
        found.get("latency_sum_ms", {}).get("sum", 0.0) / 1000,
    )
    yield latency


def serve_metrics(config: Config, bootstrap: str, port: int, rest_port: int, job_id: str) -> int:
    """Serve until the process ends; returns the real port. Raises OSError when it is taken."""
    registry = CollectorRegistry()
    metrics = JoinMetrics(rest_port, job_id)
    registry.register(metrics)
    group = join_group(config)
    offsets = committed_offsets(config, bootstrap, group, STREAMS)
    registry.register(LagMonitor(config, bootstrap, group, STREAMS, offsets))
    server = MetricsServer(
        port, host=config.metrics.host, registry=registry, unhealthy=metrics.unhealthy
    )
    return server.port

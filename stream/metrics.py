"""The join's /metrics: counts and watermark from Flink's REST, lag from the committed offsets.

Flink's own Prometheus reporter does not load in PyFlink's embedded cluster, and its names are not
ours; its REST has the same numbers under the same names in a real cluster.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
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
from topics.disk import DiskSpace
from topics.lag import LagMonitor, committed_offsets
from topics.metrics import MetricsServer
from topics.names import STREAMS, join_group

VERDICTS = {
    "impressions": ("sampled", "late", "duplicate", "undecodable"),
    "conversions": ("attributed", "late", "orphan", "duplicate", "undecodable"),
}
"""Where every event of a stream ends, as the operator counts it since it last started."""
_OURS = re.compile(r"\.headwater\.(\w+)$")
_CLOCK = re.compile(r"\.headwater_clock\.(impressions|conversions)\.(\d+)\.(\w+)$")
_UNSET_MS = -(2**63)
_log = structlog.get_logger()


class JoinMetrics(Collector):
    """Asks Flink's REST at each scrape; while it does not answer there are no join metrics."""

    def __init__(self, rest: str, job_id: str) -> None:
        self._client = httpx.Client(base_url=rest, timeout=2.0)
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
        clocks: dict[tuple[str, tuple[str, ...]], str] = {}
        for vertex in job["vertices"]:
            path = f"{self._job}/vertices/{vertex['id']}"
            listed = [found["id"] for found in self._ask(f"{path}/subtasks/metrics")]
            ids = {match.group(1): found for found in listed if (match := _OURS.search(found))}
            clocks |= {
                (path, match.groups()): found for found in listed if (match := _CLOCK.search(found))
            }
            if ids:
                yield from _operator_metrics(self._aggregates(path, ids))
            if "watermark_ms" in ids:
                yield from self._watermark(path, ids["watermark_ms"])
        yield from self._clocks(clocks)

    def _clocks(self, clocks: dict[tuple[str, tuple[str, ...]], str]) -> Iterator[Metric]:
        """Event time partition by partition, as the sources see it."""
        now = time.time()
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            "running_ms": GaugeMetricFamily(
                "headwater_partition_event_timestamp_seconds",
                "Running event time of the partition",
                labels=["stream", "partition"],
            ),
            "seen_wall_ms": GaugeMetricFamily(
                "headwater_partition_idle_seconds",
                "Since the join read the partition's newest event",
                labels=["stream", "partition"],
            ),
            "future_events": CounterMetricFamily(
                "headwater_partition_future_events",
                "Events from the future, which do not move the watermark",
                labels=["stream", "partition"],
            ),
            "behind_ms": GaugeMetricFamily(
                "headwater_partition_behind_seconds",
                "Farthest event of the last minute behind the running event time",
                labels=["stream", "partition"],
            ),
        }
        for path in {path for path, _ in clocks}:
            own = {found: of for (at, of), found in clocks.items() if at == path}
            answer = self._ask(f"{path}/subtasks/metrics", get=",".join(own), agg="max")
            for found in answer:
                stream, partition, name = own[found["id"]]
                value = float(found["max"])
                if name == "seen_wall_ms":
                    value = max(0.0, now - value / 1000)
                elif name != "future_events":
                    value /= 1000
                if name in families:
                    families[name].add_metric([stream, partition], value)
        yield from families.values()

    def _aggregates(self, path: str, ids: dict[str, str]) -> dict[str, dict[str, float]]:
        """Our name -> {sum, max} over the operator's subtasks."""
        answer = self._ask(f"{path}/subtasks/metrics", get=",".join(ids.values()), agg="sum,max")
        by_id = {found["id"]: found for found in answer}
        return {name: by_id[key] for name, key in ids.items() if key in by_id}

    def _watermark(self, path: str, own: str) -> Iterator[Metric]:
        """The operator's own word `own`: Flink has none of one in its source's task."""
        answer = self._ask(f"{path}/subtasks/metrics", get=own, agg="min")
        if not answer or float(answer[0]["min"]) <= _UNSET_MS:
            return
        mark = int(float(answer[0]["min"]))
        yield GaugeMetricFamily(
            "headwater_watermark_ms", "Event time up to which the join has decided", mark
        )
        yield GaugeMetricFamily(
            "headwater_watermark_lag_seconds",
            "Wall clock minus watermark",
            time.time() - mark / 1000,
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


def serve_metrics(
    config: Config, bootstrap: str, port: int, rest: str, job_id: str, *, state_dir: Path
) -> int:
    """Serve until the process ends; returns the real port. Raises OSError when it is taken."""
    registry = CollectorRegistry()
    metrics = JoinMetrics(rest, job_id)
    registry.register(metrics)
    registry.register(DiskSpace("join", state_dir))
    group = join_group(config)
    offsets = committed_offsets(config, bootstrap, group, STREAMS)
    registry.register(LagMonitor(config, bootstrap, group, STREAMS, offsets))
    server = MetricsServer(
        port, host=config.metrics.host, registry=registry, unhealthy=metrics.unhealthy
    )
    return server.port

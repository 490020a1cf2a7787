"""Writes the Grafana dashboards under deploy/grafana/dashboards from the tables below.

    python deploy/grafana/make_dashboards.py [--check]

Dashboards are JSON that nobody reads in a review; these tables are what is reviewed. `--check`
exits 1 when a file is not what the tables give. Every query is run against a real Prometheus that
scrapes a real stack in tests/test_monitoring.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "headwater-prometheus"}
COLUMNS = 24
HEIGHT = 8

Unit = Literal["s", "short", "ops", "bytes", "percentunit", "none", "dateTimeFromNow"]


@dataclass(frozen=True)
class Panel:
    """One graph or number; `queries` are (PromQL, legend)."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: Unit = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    text: str = ""
    threshold: float | None = None
    width: int = 8


def quantiles(name: str, by: str, labels: str = "") -> tuple[tuple[str, str], ...]:
    """p50 and p99 of a histogram over the newest five minutes."""
    inner = f"sum by (le, {by}) (rate({name}_bucket{labels}[5m]))"
    return tuple(
        (f"histogram_quantile({q}, {inner})", f"{{{{{by}}}}} p{int(q * 100)}") for q in (0.5, 0.99)
    )


READER = '{job="reader"}'
OVERVIEW = (
    Panel(
        "Freshness p99 at the reader",
        (
            (
                "histogram_quantile(0.99, sum by (le) "
                f"(rate(headwater_representation_freshness_seconds_bucket{READER}[5m])))",
                "p99",
            ),
        ),
        "s",
        "stat",
        "Event produced to vector readable in another process.",
        2.4,
        6,
    ),
    Panel(
        "Newest version",
        (('headwater_version{job="trainer"}', "version"),),
        "none",
        "stat",
        width=6,
    ),
    Panel(
        "Since the last publication",
        (('time() - headwater_last_publish_timestamp_seconds{job="trainer"}', "age"),),
        "s",
        "stat",
        "Grows when the trainer is dead, too: it is a timestamp against the clock.",
        60,
        6,
    ),
    Panel(
        "Processes that answer",
        (('sum(up{job=~"join|trainer|reader"})', "up"),),
        "none",
        "stat",
        width=6,
    ),
    Panel(
        "Events by verdict",
        (
            (
                "sum by (stream, verdict) (rate(headwater_join_events_total[1m]))",
                "{{stream}} {{verdict}}",
            ),
        ),
        "ops",
    ),
    Panel(
        "Freshness by kind",
        quantiles("headwater_representation_freshness_seconds", "kind", READER),
        "s",
        text="Measured by a read_committed reader in a process of its own.",
        threshold=2.4,
    ),
    Panel(
        "Lag at the committed offset",
        (("sum by (group) (headwater_consumer_lag_seconds)", "{{group}}"),),
        "s",
        text="Age of the first record not yet consumed.",
    ),
    Panel(
        "Normalised entropy, newest windows",
        (('headwater_progressive_ne{window="latest"}', "{{task}}"),),
        "none",
        threshold=1.0,
        text="Below 1 is better than the base rate.",
    ),
    Panel(
        "Calibration (predicted over observed), newest windows",
        (('headwater_progressive_pcoc{window="latest"}', "{{task}}"),),
        "none",
    ),
    Panel(
        "Vectors published",
        (("sum by (kind) (rate(headwater_vectors_published_total[1m]))", "{{kind}}"),),
        "ops",
    ),
)
JOIN = (
    Panel(
        "Impressions and conversions in",
        (("sum by (stream) (rate(headwater_join_events_total[1m]))", "{{stream}}"),),
        "ops",
    ),
    Panel(
        "Kept apart: late, orphan, duplicate, undecodable",
        (
            (
                "sum by (stream, verdict) (rate(headwater_join_events_total"
                '{verdict!~"sampled|attributed"}[1m]))',
                "{{stream}} {{verdict}}",
            ),
        ),
        "ops",
    ),
    Panel("Samples out", (("rate(headwater_join_samples_total[1m])", "samples"),), "ops"),
    Panel(
        "Watermark behind the wall clock",
        (("headwater_watermark_lag_seconds", "lag"),),
        "s",
        text="Rises steadily when a partition is idle or nothing is produced.",
    ),
    Panel(
        "Produced to attributed",
        quantiles("headwater_stage_latency_seconds", "stage", '{stage="join"}'),
        "s",
    ),
    Panel(
        "Source lag in records",
        (
            (
                'sum by (topic, partition) (headwater_consumer_lag_records{group=~".*join"})',
                "{{topic}} {{partition}}",
            ),
        ),
    ),
    Panel("Restarts by Flink", (("headwater_join_restarts_total", "restarts"),), "none"),
)
TRAINER = (
    Panel(
        "Samples learnt from",
        (("sum by (state) (rate(headwater_trainer_samples_total[1m]))", "{{state}}"),),
        "ops",
    ),
    Panel(
        "Stages p50 and p99",
        quantiles("headwater_stage_latency_seconds", "stage", '{job="trainer"}'),
        "s",
    ),
    Panel(
        "Lag in records",
        (
            (
                'sum by (topic, partition) (headwater_consumer_lag_records{group=~".*trainer"})',
                "{{topic}} {{partition}}",
            ),
        ),
    ),
    Panel(
        "Normalised entropy",
        (("headwater_progressive_ne", "{{task}} {{window}}"),),
        "none",
        threshold=1.0,
    ),
    Panel("AUC", (("headwater_progressive_auc", "{{task}} {{window}}"),), "none"),
    Panel("Calibration", (("headwater_progressive_pcoc", "{{task}} {{window}}"),), "none"),
    Panel("Impressions scored", (("headwater_progressive_samples", "{{task}} {{window}}"),)),
    Panel(
        "Values and records refused",
        (
            ("rate(headwater_trainer_rejected_total[5m])", "records"),
            ("time() - headwater_last_event_timestamp_seconds", "age of newest event {{job}}"),
        ),
    ),
)
STORE = (
    Panel("Rows by tier", (("headwater_store_rows", "{{tier}}"),)),
    Panel(
        "Rows admitted and evicted",
        (
            ("deriv(headwater_store_rows_admitted[5m])", "admitted"),
            ("deriv(headwater_store_rows_evicted[5m])", "evicted"),
        ),
        "ops",
    ),
    Panel(
        "Commit seconds",
        (
            (
                "histogram_quantile(0.5, sum by (le) (rate(headwater_commit_seconds_bucket[5m])))",
                "p50",
            ),
            (
                "histogram_quantile(0.99, sum by (le) (rate(headwater_commit_seconds_bucket[5m])))",
                "p99",
            ),
        ),
        "s",
    ),
    Panel("Commits", (("rate(headwater_commit_seconds_count[1m])", "commits"),), "ops"),
    Panel(
        "Free part of the disk",
        (("headwater_disk_free_bytes / headwater_disk_size_bytes", "{{place}}"),),
        "percentunit",
    ),
    Panel(
        "Memory of the trainer", (('process_resident_memory_bytes{job="trainer"}', "RSS"),), "bytes"
    ),
)
PUBLICATION = (
    Panel(
        "Freshness by kind",
        quantiles("headwater_representation_freshness_seconds", "kind", READER),
        "s",
        threshold=2.4,
    ),
    Panel(
        "Versions",
        (
            ("rate(headwater_versions_published_total[1m])", "published"),
            (
                "headwater_version - ignoring(job, instance) headwater_reader_version",
                "reader behind by",
            ),
        ),
    ),
    Panel(
        "Vectors published",
        (("sum by (kind) (rate(headwater_vectors_published_total[1m]))", "{{kind}}"),),
        "ops",
    ),
    Panel("Vectors held by the reader", (("headwater_reader_vectors", "{{kind}}"),)),
    Panel(
        "Age of what is served",
        (
            ("headwater_reader_staleness_seconds", "cut from committed state"),
            (f"time() - headwater_last_event_timestamp_seconds{READER}", "newest event"),
        ),
        "s",
    ),
    Panel(
        "Records refused by the reader", (("headwater_reader_records_refused_total", "refused"),)
    ),
)
DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "overview": ("Headwater / Overview", OVERVIEW),
    "join": ("Headwater / Join", JOIN),
    "trainer": ("Headwater / Trainer and quality", TRAINER),
    "store": ("Headwater / Store", STORE),
    "publication": ("Headwater / Publication", PUBLICATION),
}


def dashboard(name: str) -> dict[str, Any]:
    """Grafana's model of one dashboard; panels flow from left to right."""
    title, panels = DASHBOARDS[name]
    made, x, y = [], 0, 0
    for number, panel in enumerate(panels, start=1):
        height = 4 if panel.kind == "stat" else HEIGHT
        if x + panel.width > COLUMNS:
            x, y = 0, y + (4 if made[-1]["type"] == "stat" else HEIGHT)
        made.append(_panel(panel, number, {"h": height, "w": panel.width, "x": x, "y": y}))
        x += panel.width
    return {
        "uid": f"headwater-{name}",
        "title": title,
        "tags": ["headwater"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "links": [
            {"type": "dashboards", "tags": ["headwater"], "title": "Headwater", "asDropdown": True}
        ],
        "panels": made,
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.threshold is not None:
        steps.append({"color": "red", "value": panel.threshold})
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "expr": query,
                "legendFormat": legend,
                "datasource": DATASOURCE,
            }
            for n, (query, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
    }


def main() -> int:
    """0 = written, or with --check current; 1 = not current."""
    check, stale = "--check" in sys.argv[1:], []
    for name in DASHBOARDS:
        file, text = FOLDER / f"{name}.json", json.dumps(dashboard(name), indent=1) + "\n"
        if check and (not file.exists() or file.read_text() != text):
            stale.append(str(file))
        elif not check:
            file.write_text(text)
    if stale:
        sys.stderr.write(f"not what make_dashboards.py gives: {', '.join(stale)}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

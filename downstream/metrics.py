"""Gauges of a reader process, asked from the reader at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from downstream.errors import ReaderFailed
from downstream.reader import RepresentationReader
from topics.names import Kind


class ReaderMetrics(Collector):
    """Version, staleness, vectors held, records refused, newest event and publication."""

    def __init__(self, reader: RepresentationReader, kinds: tuple[Kind, ...]) -> None:
        self._reader = reader
        self._kinds = kinds

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        vectors = GaugeMetricFamily("headwater_reader_vectors", "Vectors held", labels=["kind"])
        for kind in self._kinds:
            vectors.add_metric([kind], self._reader.count(kind))
        yield vectors
        yield CounterMetricFamily(
            "headwater_reader_records_refused",
            "Records skipped because their bytes are not what their topic carries",
            value=self._reader.records_refused,
        )
        try:
            manifest = self._reader.manifest
        except ReaderFailed:  # /healthz says why; gauges of a dead reader would lie
            return
        if manifest is None:
            return
        yield GaugeMetricFamily(
            "headwater_reader_version", "Version that the reader serves", value=manifest.version
        )
        yield GaugeMetricFamily(
            "headwater_reader_staleness_seconds",
            "Seconds since the version served was cut from committed state",
            value=self._reader.staleness(),
        )
        yield GaugeMetricFamily(
            "headwater_last_event_timestamp_seconds",
            "Event time of the newest event in what this process serves",
            value=manifest.event_ms / 1000,
        )
        yield GaugeMetricFamily(
            "headwater_last_publish_timestamp_seconds",
            "When the version served was cut from committed state",
            value=manifest.created_ms / 1000,
        )

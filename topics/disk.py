"""How much room there is on the disk of a directory, as Prometheus gauges."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class DiskSpace(Collector):
    """Asked at each scrape; a directory that is gone gives nothing. `place` says whose it is."""

    def __init__(self, place: str, directory: Path) -> None:
        self._place = place
        self._directory = directory

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            found = shutil.disk_usage(self._directory)
        except OSError:
            return
        free = GaugeMetricFamily(
            "headwater_disk_free_bytes", "Room on the disk of what is kept there", labels=["place"]
        )
        free.add_metric([self._place], found.free)
        yield free
        size = GaugeMetricFamily("headwater_disk_size_bytes", "Size of that disk", labels=["place"])
        size.add_metric([self._place], found.total)
        yield size

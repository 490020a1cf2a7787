"""Reads the metrics that a process of the stack serves on its loopback port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from runtime.broker import HOST

_TIMEOUT_S = 2.0


class Scrape:
    """What one process said at one moment; empty when it did not answer."""

    def __init__(self, text: str) -> None:
        self._samples = [
            (sample.name, sample.labels, float(sample.value))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    @property
    def answered(self) -> bool:
        return bool(self._samples)

    def find(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """(labels, value) of every sample of `name` that has these labels."""
        for found, of, value in self._samples:
            if found == name and labels.items() <= of.items():
                yield of, value

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums of `name` by one of its labels."""
        sums: dict[str, float] = {}
        for of, value in self.find(name, **labels):
            sums[of.get(label, "")] = sums.get(of.get(label, ""), 0.0) + value
        return sums

    def total(self, name: str, **labels: str) -> float | None:
        """Sum of `name`; None where the process has no such sample."""
        values = [value for _, value in self.find(name, **labels)]
        return sum(values) if values else None


def scrape(port: int) -> Scrape:
    """Metrics at 127.0.0.1:`port`; an empty one when nothing answers."""
    try:
        return Scrape(httpx.get(f"http://{HOST}:{port}/metrics", timeout=_TIMEOUT_S).text)
    except (httpx.HTTPError, ValueError):
        return Scrape("")


def page(port: int, path: str) -> Any:
    """A JSON page of a process; None when it does not answer."""
    try:
        answer = httpx.get(f"http://{HOST}:{port}{path}", timeout=_TIMEOUT_S)
        return orjson.loads(answer.content) if answer.is_success else None
    except (httpx.HTTPError, orjson.JSONDecodeError):
        return None

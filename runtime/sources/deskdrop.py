"""CI&T Deskdrop: article views, then likes, bookmarks, follows and comments, as a stream.

A view is an opened article: the impression. The other rows name no view, so they are conversions
that name no impression, and the join finds their last touch. Ids are row numbers of the file
(`v17`, `c18`): an exact duplicate row is its own event, as the published counts take it.
The file is not in time order; `events` is.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from runtime.sources.traffic import DEMO_EVENTS_PER_SECOND, TrafficEvent
from settings.duration import format_duration

if TYPE_CHECKING:
    import polars as pl

KINDS = {"LIKE": "like", "BOOKMARK": "bookmark", "FOLLOW": "follow", "COMMENT CREATED": "comment"}
DEFAULT_WINDOW_MS = 86_400_000
HISTORY_MAX = 10
_PLATFORMS = (("Android", "android"), ("iOS", "ios"), ("Mobile", "mobile-web"), ("Mozilla", "web"))


class DeskdropTraffic:
    """The log in `path` (the zip as published, or its csv), every kind with the same window.

    Raises OSError or ValueError for a file that is not this log.
    """

    name = "deskdrop"

    def __init__(self, path: Path, *, window_ms: int = DEFAULT_WINDOW_MS) -> None:
        self._rows = _read(path)
        self._window_ms = window_ms
        times = self._rows["timestamp"]
        self._span_ms = int(times[-1] - times[0]) * 1000
        # A partition sees a part of the users only: its own gaps are longer than the file's.
        self._gap_ms = int(times.diff().max() or 0) * 1000  # type: ignore[arg-type]

    @property
    def speedup(self) -> float:
        """Some `DEMO_EVENTS_PER_SECOND` on average: as many as two cores learn from at ease."""
        return self._span_ms / 1000 / (len(self._rows) / DEMO_EVENTS_PER_SECOND)

    def config_values(self) -> Mapping[str, Any]:
        window = format_duration(self._window_ms)
        categorical = {"type": "categorical"}
        return {
            "domains": ["android", "ios", "web", "mobile-web", "unknown"],
            "kinds": {kind: {"window": window} for kind in KINDS.values()},
            "slots": {
                "recent_items": {"side": "user", "type": "sequence", "length_max": HISTORY_MAX},
                "user_agent": {"side": "context", **categorical},
                "region": {"side": "context", **categorical},
                "country": {"side": "context", **categorical},
                "hour": {"side": "context", **categorical},
                "weekday": {"side": "context", **categorical},
                "views_in_session": {"side": "context", "type": "numeric"},
            },
            "events": {"future_bound": format_duration(max(86_400_000, 8 * self._gap_ms))},
            "join": {"lateness": "5s"},
        }

    def events(self) -> Iterator[TrafficEvent]:
        viewed: defaultdict[str, deque[dict[str, Any]]] = defaultdict(
            lambda: deque(maxlen=HISTORY_MAX)
        )
        in_session: defaultdict[str, int] = defaultdict(int)
        for row in self._rows.iter_rows(named=True):
            event_ms = row["timestamp"] * 1000
            if row["eventType"] != "VIEW":
                yield TrafficEvent("conversions", event_ms, _conversion(row, event_ms))
                continue
            in_session[row["sessionId"]] += 1
            features = _features(row, in_session[row["sessionId"]])
            history = viewed[row["personId"]]
            if history:
                features["recent_items"] = list(history)
            history.append({"item_id": row["contentId"], "event_ms": event_ms})
            line = orjson.dumps(
                {
                    "impression_id": f"v{row['row']}",
                    "event_ms": event_ms,
                    "user_id": row["personId"],
                    "item_id": row["contentId"],
                    "domain": _platform(row["userAgent"]),
                    "features": features,
                }
            )
            yield TrafficEvent("impressions", event_ms, line)


def _read(path: Path) -> pl.DataFrame:
    """The log in time order (stable: rows of one second keep the file's order)."""
    import polars as pl  # loads slowly, and every command would wait for it

    data = path.read_bytes()
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read(archive.namelist()[0])
    ids = {"contentId": pl.String, "personId": pl.String, "sessionId": pl.String}
    wanted = {"timestamp": pl.Int64, "eventType": pl.String, **ids}
    frame = pl.read_csv(data, schema_overrides={**wanted, "userRegion": pl.String})
    missing = [name for name in (*wanted, "userAgent", "userCountry") if name not in frame.columns]
    if missing:
        raise ValueError(f"{path} is not the Deskdrop log: no column {', '.join(missing)}")
    known = ["VIEW", *KINDS]
    return (
        frame.with_row_index("row")
        .filter(pl.col("eventType").is_in(known))
        .sort("timestamp", maintain_order=True)
    )


def _conversion(row: Mapping[str, Any], event_ms: int) -> bytes:
    return orjson.dumps(
        {
            "conversion_id": f"c{row['row']}",
            "impression_id": None,
            "event_ms": event_ms,
            "user_id": row["personId"],
            "item_id": row["contentId"],
            "kind": KINDS[row["eventType"]],
            "value": None,
        }
    )


def _features(row: Mapping[str, Any], views_in_session: int) -> dict[str, Any]:
    features: dict[str, Any] = {
        "hour": str(row["timestamp"] // 3600 % 24),
        "weekday": str(row["timestamp"] // 86_400 % 7),
        "views_in_session": views_in_session,
    }
    for slot, column in (
        ("user_agent", "userAgent"),
        ("region", "userRegion"),
        ("country", "userCountry"),
    ):
        if row[column]:
            features[slot] = row[column]
    return features


def _platform(agent: str | None) -> str:
    return next((name for mark, name in _PLATFORMS if agent and mark in agent), "unknown")

"""KuaiRand-27K rows as a stream: a shown video, and which of six feedbacks it drew.

The rows are those with like or hate of some users, not a random sample of exposures: say so beside
any figure. The log has no conversion times, so a conversion has its impression's time. `label`
(like against hate) is never a task: how the rows were chosen leaks it. `play_time_ms` and
`comment_stay_time` are outcomes, not features.
"""

from __future__ import annotations

import lzma
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from runtime.sources.traffic import DEMO_EVENTS_PER_SECOND, TrafficEvent
from settings.duration import format_duration

if TYPE_CHECKING:
    import polars as pl

KINDS = {
    "is_click": "click",
    "long_view": "long_view",
    "is_comment": "comment",
    "is_profile_enter": "profile_enter",
    "is_forward": "forward",
    "is_follow": "follow",
}
USER_FEATURES_FILE = "kuairand_user_features.csv.xz"
HISTORY_MAX = 10
DEFAULT_WINDOW_MS = 3_600_000
_USER_SLOTS = (
    "user_active_degree",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{n}" for n in range(18)),
)
_MISSING = {"", "-124", "UNKNOWN"}


class KuairandTraffic:
    """The rows in `path`, with the user features that lie beside it, if they do.

    Raises OSError or ValueError for a file that is not this log.
    """

    name = "kuairand"

    def __init__(self, path: Path, *, window_ms: int = DEFAULT_WINDOW_MS) -> None:
        self._rows = _read(path)
        features = path.parent / USER_FEATURES_FILE
        self._users = _read_users(features) if features.exists() else {}
        self._window_ms = window_ms
        times = self._rows["time_ms"]
        self._span_ms = int(times[-1] - times[0])
        self._gap_ms = int(times.diff().max() or 0)  # type: ignore[arg-type]

    @property
    def speedup(self) -> float:
        """Some `DEMO_EVENTS_PER_SECOND` on average: as many as two cores learn from at ease."""
        # a row is an impression and, on average, 1.2 conversions
        return self._span_ms / 1000 / (2.2 * len(self._rows) / DEMO_EVENTS_PER_SECOND)

    def config_values(self) -> Mapping[str, Any]:
        slots: dict[str, dict[str, Any]] = {
            "recent_items": {"side": "user", "type": "sequence", "length_max": HISTORY_MAX},
            "duration_s": {"side": "item", "type": "numeric"},
            "duration_bucket": {"side": "item", "type": "categorical"},
            "hour": {"side": "context", "type": "categorical"},
        }
        if self._users:
            slots |= {name: {"side": "user", "type": "categorical"} for name in _USER_SLOTS}
        window = format_duration(self._window_ms)
        return {
            "domains": ["kuairand"],
            "kinds": {kind: {"window": window} for kind in KINDS.values()},
            "slots": slots,
            "events": {"future_bound": format_duration(max(86_400_000, 8 * self._gap_ms))},
            "join": {"lateness": "5s"},
        }

    def events(self) -> Iterator[TrafficEvent]:
        clicked: defaultdict[str, deque[dict[str, Any]]] = defaultdict(
            lambda: deque(maxlen=HISTORY_MAX)
        )
        for row in self._rows.iter_rows(named=True):
            event_ms, user_id, item_id = row["time_ms"], row["user_id"], row["video_id"]
            common = {"event_ms": event_ms, "user_id": user_id, "item_id": item_id}
            features = {
                **self._users.get(user_id, {}),
                "duration_s": round(row["duration_ms"] / 1000, 3),
                "duration_bucket": str(int(row["duration_ms"]).bit_length()),
                "hour": str(row["hourmin"] // 100),
            }
            if clicked[user_id]:
                features["recent_items"] = list(clicked[user_id])
            impression_id = f"r{row['row']}"
            impression = {
                "impression_id": impression_id,
                **common,
                "domain": "kuairand",
                "features": features,
            }
            yield TrafficEvent("impressions", event_ms, orjson.dumps(impression))
            for column, kind in KINDS.items():
                if row[column] == 1:
                    conversion = {
                        "conversion_id": f"{impression_id}-{kind}",
                        "impression_id": impression_id,
                        **common,
                        "kind": kind,
                        "value": None,
                    }
                    yield TrafficEvent("conversions", event_ms, orjson.dumps(conversion))
            if row["is_click"] == 1:
                clicked[user_id].append({"item_id": item_id, "event_ms": event_ms})


def _read(path: Path) -> pl.DataFrame:
    import polars as pl  # loads slowly, and every command would wait for it

    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    ids = {"user_id": pl.String, "video_id": pl.String}
    tabs = b"\t" in data[: data.find(b"\n")]
    frame = pl.read_csv(data, separator="\t" if tabs else ",", schema_overrides=ids)
    wanted = (*ids, "time_ms", "hourmin", "duration_ms", *KINDS)
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise ValueError(f"{path} is not a KuaiRand log: no column {', '.join(missing)}")
    return frame.with_row_index("row").sort("time_ms", maintain_order=True)


def _read_users(path: Path) -> dict[str, dict[str, str]]:
    """user_id -> its features, missing ones left out."""
    import polars as pl  # loads slowly

    frame = pl.read_csv(lzma.decompress(path.read_bytes()), infer_schema=False)
    columns = [name for name in _USER_SLOTS if name in frame.columns]
    return {
        row["user_id"]: {
            c: row[c] for c in columns if row[c] is not None and row[c] not in _MISSING
        }
        for row in frame.iter_rows(named=True)
    }

"""`doctor` on event time: what holds the watermark back, and what it has passed over.

Every finding rests on the join's own metrics, partition by partition; a partition is idle when the
join has read nothing from it for `join.idle_timeout`, and then no longer counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from runtime.finding import Finding
from runtime.scrape import Scrape
from settings.config import Config

HELD_BACK_S = 60.0
"""The slowest active partition may trail the fastest by this before it is named."""


def watermark_findings(config: Config, join: Scrape) -> Iterator[Finding]:
    """Nothing where the join does not answer or has read no event."""
    running = _by_partition(join, "headwater_partition_event_timestamp_seconds")
    if not running:
        return
    idle = _by_partition(join, "headwater_partition_idle_seconds")
    timeout_s = config.join.idle_timeout / 1000
    sleeping = sorted(at for at, seconds in idle.items() if timeout_s and seconds > timeout_s)
    active = {at: seconds for at, seconds in running.items() if at not in sleeping}
    yield from _watermark(config, join, active or running, idle)
    if sleeping:
        yield Finding(
            "idle partitions",
            "ok",
            f"{_named(sleeping)} silent for more than {timeout_s:g} s; the watermark goes on",
        )
    ahead = _by_partition(join, "headwater_partition_future_events_total")
    if guilty := sorted(at for at, count in ahead.items() if count):
        yield Finding(
            "clocks",
            "warning",
            f"{sum(ahead.values()):.0f} events from the future on {_named(guilty)}: undecodable,"
            " the watermark did not move",
            "correct the producer's clock; once their time has come,"
            " `headwater reprocess undecodable` sends them again",
        )
    yield from _late(join)


def _watermark(
    config: Config,
    join: Scrape,
    active: dict[tuple[str, str], float],
    idle: dict[tuple[str, str], float],
) -> Iterator[Finding]:
    slowest = min(active, key=lambda at: active[at])
    trails_s = max(active.values()) - active[slowest]
    silent_s = idle.get(slowest, 0.0)
    lag = join.total("headwater_watermark_lag_seconds")
    if lag is None:
        fix = "every partition needs an event, or set join.idle_timeout above 0s"
        yield Finding("watermark", "warning", "there is none yet", fix)
    elif trails_s <= HELD_BACK_S:
        yield Finding("watermark", "ok", f"{lag:.1f} s behind the wall clock")
    elif silent_s > HELD_BACK_S and not config.join.idle_timeout:
        yield Finding(
            "watermark",
            "problem",
            f"{_named([slowest])} silent for {silent_s:.0f} s holds it {trails_s:.0f} s back",
            "set join.idle_timeout above 0s, or send to every partition",
        )
    else:
        yield Finding(
            "watermark",
            "warning",
            f"{_named([slowest])} is {trails_s:.0f} s behind the newest and holds it back",
            "its producer lags or replays the past: nothing is lost, samples wait for it",
        )


def _late(join: Scrape) -> Iterator[Finding]:
    late = sum(value for _, value in join.find("headwater_join_events_total", verdict="late"))
    if not late:
        return
    behind_s = max(_by_partition(join, "headwater_partition_behind_seconds").values(), default=0)
    burst = f"; one of the last minute lay {behind_s:.0f} s behind" if behind_s else ""
    yield Finding(
        "late events",
        "warning",
        f"{late:.0f} came late since the join started{burst}",
        "raise join.lateness if they keep coming; `headwater reprocess late` joins those there are",
    )


def _by_partition(join: Scrape, name: str) -> dict[tuple[str, str], float]:
    return {(of["stream"], of["partition"]): value for of, value in join.find(name)}


def _named(partitions: list[tuple[str, str]]) -> str:
    shown = [f"{stream} partition {partition}" for stream, partition in partitions[:4]]
    more = len(partitions) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")

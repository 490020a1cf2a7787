"""`simulate`: ad traffic with a known truth into any broker, until stopped."""

from __future__ import annotations

import time
from pathlib import Path

import structlog
import typer

from runtime.choices import positive_number
from runtime.connection import BOOTSTRAP_OPTION, CONFIG_OPTION, DIR_OPTION, connect
from runtime.producing import EventProducer
from runtime.replay import Replay
from runtime.run_state import now_ms
from runtime.sources.catalog import DEMO_RATE
from runtime.sources.simulated import SimulatedTraffic
from runtime.verbs.stack import stop_on_sigterm

_SAID_EVERY_S = 60.0
_log = structlog.get_logger("traffic")


def simulate(
    rate: float = typer.Option(
        DEMO_RATE, "--rate", parser=positive_number, help="Impressions per second."
    ),
    seconds: float = typer.Option(
        None, "--seconds", parser=positive_number, help="Stop after so long; else on Ctrl-C."
    ),
    seed: int = typer.Option(None, "--seed", help="The same seed, the same world; else a new one."),
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
) -> None:
    """Send simulated traffic of both streams, in real time, faults included.

    The config it goes with is `deploy/headwater.toml`.
    """
    stop_on_sigterm()
    at = connect(directory, bootstrap, config_file)
    replay = Replay(
        SimulatedTraffic(seed=now_ms() if seed is None else seed, rate=rate),
        EventProducer(at.config, at.bootstrap),
        speedup=1.0,
        truth_path=None,
        on_send=lambda _event: None,
    )
    replay.start()
    replay.release()
    ends = None if seconds is None else time.monotonic() + seconds
    said = time.monotonic()
    try:
        while replay.is_alive() and (ends is None or time.monotonic() < ends):
            time.sleep(0.2)
            if time.monotonic() - said > _SAID_EVERY_S:
                said = time.monotonic()
                _log.info("sent", **replay.sent)
    except KeyboardInterrupt:
        pass
    finally:
        replay.end()
    sent = ", ".join(f"{count} {stream}" for stream, count in sorted(replay.sent.items()))
    typer.echo(f"{sent} sent", err=True)

"""Our join over bounded input, against a Flink job that copies the same topics and does no more.

Flink processes on one broker, taking turns: `copy` (both event topics into one, raw bytes),
`heap` and `rocksdb` (our join, policy `wait`, all its side topics) and `correct` (heap, policy
`correct`). Same input, same parallelism, same exactly-once sink; each has run before it is
timed: over the inputs of the growth part, or a few events. The time is Flink's own net runtime of
the job, the figure the median of five rounds. It holds what every job pays once, starting its tasks
and its last checkpoints: `fixed_seconds`, a run over a few events. That lifts the ratios;
`ratio_*_sustained` are those of the time beyond it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from flink_job import COPIED
from join_growth import SPAN_HOURS, checkpoint_bytes_max, inputs, report, windows
from join_log import send_repeated
from measuring import config_of, ratio, run_benchmark, say, spread

from runtime.broker import EmbeddedBroker
from runtime.config_file import write_config
from runtime.jars import flink_jars, require_java
from runtime.producing import EventProducer
from runtime.sources.simulated import SimulatedTraffic
from runtime.sources.traffic import TrafficEvent
from settings.config import Config
from topics.admin import ensure_topics
from topics.names import CONVERSIONS, IMPRESSIONS, SAMPLES
from topics.scan import Partition, end_offsets, read_to_end

SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "copy": ("copy", {}),
    "heap": ("join", {"join__policy": "wait"}),
    "rocksdb": ("join", {"join__policy": "wait", "join__state_backend": "rocksdb"}),
    "correct": ("join", {"join__policy": "correct", "join__elapsed": "0s"}),
}
FULL = "bench"
FEW_IMPRESSIONS = 200
START_MS = 1_700_000_000_000
RATE = 2_000.0
"""Impressions per second of event time: with windows of 8 to 20 s, what is open at once."""


class FlinkProcess:
    """A `flink_job.py` that waits for its turns."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._log = (folder / "log").open("w+b")
        self._process = subprocess.Popen(
            [
                *(sys.executable, str(Path(__file__).with_name("flink_job.py"))),
                *("--bootstrap", bootstrap, "--state-dir", str(folder / "state")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def start(self, name: str, prefix: str, *, kind: str = "", **flags: Any) -> None:
        """Begin a run of the system `name` over the topics of `prefix`; `flags` as `config_of`."""
        file = self._folder / f"{name}.toml"
        write_config(_config(name, FULL, **flags), file, comment=f"bench join: {name}")
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind or SYSTEMS[name][0]} {file} {prefix}\n".encode())
        self._process.stdin.flush()

    def seconds(self) -> float:
        """Wait for the run; Flink's net runtime of it."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            reason = self._log.read().decode(errors="replace").strip()[-2_000:]
            raise RuntimeError(f"the Flink process in {self._folder.name} ended: {reason}")
        return int(answer) / 1000

    def run(self, name: str, prefix: str, **flags: Any) -> float:
        """`start` and `seconds`."""
        self.start(name, prefix, **flags)
        return self.seconds()

    def state_bytes(self, name: str, prefix: str, **flags: Any) -> int:
        """The size of the largest checkpoint of a run that is saved often."""
        logs = self._folder / "state" / "run0" / "logs"  # the JVM's, for all of its runs
        since = {log: log.stat().st_size for log in logs.glob("*.log")}
        self.start(name, prefix, kind="join-often-saved", **flags)
        self.seconds()
        return max(checkpoint_bytes_max(log, at) for log, at in since.items())

    def close(self) -> None:
        """End it; its JVM dies with it."""
        self._process.kill()
        self._process.wait()
        self._log.close()


def measure(quick: bool) -> dict[str, Any]:
    """Every key of the report; see the module."""
    require_java()
    flink_jars()
    # 2.0 M events with conversions. The compiler of the JVM is at work for the first rounds.
    repetitions, rounds = (2, 2) if quick else (7, 5)
    stretch = 10_000 if quick else 250_000
    impressions = stretch * repetitions
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-bench-")))
        broker = stack.enter_context(EmbeddedBroker(folder / "broker"))
        say("starting Flink and sending events")
        of_system = _processes(stack, broker.bootstrap, folder, quick)
        full = _config("heap", FULL)
        _make_topics(full, broker.bootstrap)
        send_repeated(
            full,
            broker.bootstrap,
            _source(stretch),
            start_ms=START_MS,
            length_ms=round(1000 * stretch / RATE),
            times=repetitions,
        )
        events = _events(full, broker.bootstrap)
        for process in set(of_system.values()):
            process.seconds()
        growth = _growth(of_system, broker.bootstrap, quick)
        say(f"{events:,} events")
        seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
        for n in range(rounds):
            before = end_offsets(full, broker.bootstrap, [COPIED, SAMPLES])
            for name, process in of_system.items():
                seconds[name].append(process.run(name, FULL))
            found = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
            say(f"round {n + 1}: {found}")
        fixed = {name: process.run(name, _few(name)) for name, process in of_system.items()}
        copied, final = _counts(full, broker.bootstrap, before)
    if copied != events or final != 3 * impressions:
        raise RuntimeError(
            f"not every event came out of the last round: {copied} copies of {events} events, "
            f"{final} final samples of 3 x {impressions} impressions"
        )
    ratios = {name: ratio(seconds["copy"], seconds[name]) for name in SYSTEMS if name != "copy"}
    beyond = {name: float(np.median(seconds[name])) - fixed[name] for name in SYSTEMS}
    return {
        **{f"ratio_{name}": found["median"] for name, found in ratios.items()},
        **{f"ratio_{name}_sustained": beyond["copy"] / beyond[name] for name in ratios},
        **{
            f"{name}_events_per_second": events / float(np.median(values))
            for name, values in seconds.items()
        },
        "events": events,
        "impressions": impressions,
        "parallelism": _config("heap", FULL).join.parallelism,
        "fixed_seconds": fixed,
        "processes": len(set(of_system.values())),
        "rounds": {
            "seconds": {name: spread(values) for name, values in seconds.items()},
            **{f"ratio_{name}": found for name, found in ratios.items()},
        },
        **growth,
    }


def _processes(
    stack: ExitStack, bootstrap: str, folder: Path, quick: bool
) -> dict[str, FlinkProcess]:
    """System -> its process, already at work on its few events; `quick` starts one for the copy and
    one for all that joins, since a JVM and PyFlink take longer to start than a quick round."""
    of_system: dict[str, FlinkProcess] = {}
    for name in SYSTEMS:
        # A prefix each, since they run at once here and transactional ids are made of it.
        _send(_config(name, _few(name)), bootstrap, _source(FEW_IMPRESSIONS).events())
        if quick and name in ("rocksdb", "correct"):
            of_system[name] = of_system["heap"]
            continue
        of_system[name] = FlinkProcess(bootstrap, folder / name)
        stack.callback(of_system[name].close)
        of_system[name].start(name, _few(name))
    return of_system


def _growth(of_system: dict[str, FlinkProcess], bootstrap: str, quick: bool) -> dict[str, Any]:
    """See `join_growth`; every system runs over the base input once untimed."""
    events = {}
    for each in inputs(quick):
        say(f"growth: {each.name}, {each.impressions:,} impressions")
        events[each.name] = _send(_config("heap", each.name), bootstrap, each.events())
    base = next(each for each in inputs(quick) if each.name == "base")
    if not quick:
        for name, process in of_system.items():
            process.run(name, base.name, **windows(1))
    state_bytes: dict[str, int] = {}

    def rate(system: str, name: str, hours: int) -> float:
        flags = {} if system == "copy" else windows(hours)
        seconds = of_system[system].run(system, name, **flags)
        if hours == 24:
            state_bytes[system] = of_system[system].state_bytes(system, name, **flags)
        return events[name] / seconds

    found = report(rate, state_bytes, round(base.impressions * 24 / SPAN_HOURS))
    return found | {"growth_events": events}


def _few(name: str) -> str:
    return f"few-{name}"


def _source(impressions: int) -> SimulatedTraffic:
    return SimulatedTraffic(
        start_ms=START_MS,
        rate=RATE,
        users=20_000,
        items=5_000,
        impressions_max=impressions,
        faults=False,
    )


def _config(name: str, prefix: str, **flags: Any) -> Config:
    return config_of(
        _source(0).config_values(),
        kafka__topic_prefix=prefix,
        join__idle_timeout="0s",
        **SYSTEMS[name][1],
        **flags,
    )


def _make_topics(config: Config, bootstrap: str) -> None:
    """The stack's, and one to copy to."""
    ensure_topics(config, bootstrap)
    copied = NewTopic(
        config.topic(COPIED), num_partitions=config.kafka.partitions, replication_factor=1
    )
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.create_topics([copied]).values():
        future.result()


def _events(config: Config, bootstrap: str) -> int:
    return sum(end_offsets(config, bootstrap, [IMPRESSIONS, CONVERSIONS]).values())


def _send(config: Config, bootstrap: str, traffic: Iterable[TrafficEvent]) -> int:
    """Both topics filled in order of event time, and a topic to copy to; how many events."""
    _make_topics(config, bootstrap)
    producer = EventProducer(config, bootstrap)
    for event in traffic:
        producer.send(event.stream, event.line)
    producer.flush()
    return _events(config, bootstrap)


def _counts(config: Config, bootstrap: str, start: dict[Partition, int]) -> tuple[int, int]:
    """(records copied, final samples) from `start` on."""
    found = {COPIED: 0, SAMPLES: 0}
    for topic in found:
        own = {where: at for where, at in start.items() if where[0] == topic}
        for _, message in read_to_end(config, bootstrap, [topic], start=own):
            found[topic] += topic == COPIED or b'"state":"final"' in (message.value() or b"")
    return found[COPIED], found[SAMPLES]


if __name__ == "__main__":
    run_benchmark("join", measure)

"""The checks of `doctor`. Each looks at one thing, changes nothing, and says how to mend it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource  # .admin's stubs do not re-export these
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._resource import ResourceType

from runtime.broker import cluster_id_at
from runtime.config_file import read_config
from runtime.finding import Finding
from runtime.machine import machine_findings, port_findings
from runtime.run_state import RunState, read_run
from runtime.scrape import scrape
from runtime.watermarks import watermark_findings
from settings.config import Config
from settings.credentials import resolved
from settings.load import ConfigError
from topics.admin import admin_client
from topics.errors import TopicError
from topics.names import ALL_TOPICS, EVENT_TOPICS, partition_count, topic_settings

CLOCK_SKEW_S_MAX = 2.0
_TIMEOUT_S = 10.0


def diagnose(directory: Path, config_file: Path | None) -> list[Finding]:
    """Every finding: of this machine, then of the stack in `directory` if one runs there."""
    findings = [*machine_findings(directory)]
    run = read_run(directory)
    try:
        config = read_config(config_file or (Path(run.config) if run else None))
        findings.append(Finding("config", "ok", "every value is valid"))
    except ConfigError as error:
        text = "; ".join(str(error).splitlines())
        return [*findings, Finding("config", "problem", text, "correct the named values")]
    if run is not None and not run.is_alive:
        findings.append(
            Finding(
                "stack",
                "warning",
                f"the stack of {directory} has ended (pid {run.pid} is gone)",
                f"`headwater up --dir {directory}` starts it again",
            )
        )
        run = None
    if run is not None:
        findings += [*_processes(run), *port_findings(run)]
        join = run.children.get("join")
        if join is not None and join.metrics_port:
            findings += watermark_findings(config, scrape(join.metrics_port))
    bootstrap = run.bootstrap if run else config.kafka.bootstrap
    if bootstrap:
        findings += _broker(config, bootstrap, run.cluster_id if run else None)
    elif run is None:
        findings.append(Finding("stack", "ok", f"none runs in {directory}"))
    return findings


def _processes(run: RunState) -> Iterator[Finding]:
    for name, child in run.children.items():
        if child.state != "running":
            says = f"{child.state}; {child.reason or 'it has not been ready yet'}"
            yield Finding(name, "problem", says, f"read {child.log}")
        elif child.restarts:
            says = f"restarted {child.restarts} times; last: {child.reason}"
            yield Finding(name, "warning", says, f"read {child.log}")
        else:
            yield Finding(name, "ok", f"running, pid {child.pid}")
        if name == "join" and child.metrics_port:
            restarts = scrape(child.metrics_port).total("headwater_join_restarts_total") or 0
            if restarts:
                yield Finding(
                    "join job",
                    "warning",
                    f"Flink restarted its job {restarts:.0f} times",
                    f"read {child.log} and the logs in {Path(child.log).parent.parent / 'join'}",
                )


def _broker(config: Config, bootstrap: str, expected_id: str | None) -> Iterator[Finding]:
    found = cluster_id_at(bootstrap, _TIMEOUT_S, **resolved(config.kafka.extra))
    if found is None:
        yield Finding(
            "broker",
            "problem",
            f"nobody answers at {bootstrap}",
            "start it, or correct the port" + (", or kafka.extra" if config.kafka.extra else ""),
        )
        return
    if expected_id is not None and found != expected_id:
        yield Finding(
            "broker",
            "problem",
            f"{bootstrap} answers as cluster {found!r}, the stack's is {expected_id!r}",
            "another broker took the port: stop it, or `headwater down` and `up` again",
        )
        return
    yield Finding("broker", "ok", f"cluster {found} at {bootstrap}")
    admin = admin_client(config, bootstrap)
    for check in (_transactions, _topics, _clock):
        yield from _guarded(check, admin, config, bootstrap)


def _guarded(
    check: Callable[[AdminClient, Config, str], Iterator[Finding]],
    admin: AdminClient,
    config: Config,
    bootstrap: str,
) -> Iterator[Finding]:
    name = check.__name__.strip("_")
    try:
        yield from check(admin, config, bootstrap)
    except (KafkaException, TopicError) as error:
        yield Finding(name, "problem", f"could not be checked: {error}", "are its ACLs granted?")


def _transactions(admin: AdminClient, config: Config, _bootstrap: str) -> Iterator[Finding]:
    brokers = list(admin.list_topics(timeout=_TIMEOUT_S).brokers)
    described = _describe(admin, ResourceType.BROKER, [str(broker) for broker in brokers])
    maximum = min(int(of["transaction.max.timeout.ms"]) for of in described.values())
    wanted = config.join.transaction_timeout
    if wanted > maximum:
        yield Finding(
            "transaction timeout",
            "problem",
            f"join.transaction_timeout is {wanted} ms, the broker allows {maximum} ms",
            "raise the broker's transaction.max.timeout.ms, or lower join.transaction_timeout",
        )
    else:
        yield Finding("transaction timeout", "ok", f"{wanted} ms of the broker's {maximum} ms")


def _topics(admin: AdminClient, config: Config, _bootstrap: str) -> Iterator[Finding]:
    existing = admin.list_topics(timeout=_TIMEOUT_S).topics
    missing = [name for name in ALL_TOPICS if config.topic(name) not in existing]
    if missing:
        yield Finding(
            "topics",
            "warning",
            f"not there yet: {', '.join(map(config.topic, missing))}",
            "`headwater up` creates them",
        )
    present = [name for name in ALL_TOPICS if name not in missing]
    described = _describe(admin, ResourceType.TOPIC, [config.topic(name) for name in present])
    wrong = False
    for name in present:
        topic = config.topic(name)
        partitions = len(existing[topic].partitions)
        expected = partition_count(config, name)
        differing = [
            f"{key} is {described[topic].get(key)}, not {value}"
            for key, value in topic_settings(config, name).items()
            if described[topic].get(key) != value
        ]
        if partitions != expected and not (name in EVENT_TOPICS and partitions > expected):
            differing.insert(0, f"it has {partitions} partitions, not {expected}")
        if differing:
            wrong = True
            fix = "set them so, or another kafka.topic_prefix"
            yield Finding(f"topic {topic}", "warning", "; ".join(differing), fix)
    if present and not wrong:
        yield Finding("topics", "ok", f"{len(present)} are laid out as the config says")


def _clock(admin: AdminClient, config: Config, _bootstrap: str) -> Iterator[Finding]:
    """Freshness compares producers' clocks with readers': the newest event must not be to come."""
    existing = admin.list_topics(timeout=_TIMEOUT_S).topics
    wanted = {
        TopicPartition(topic, partition): OffsetSpec.max_timestamp()  # type: ignore[no-untyped-call]
        for topic in map(config.topic, EVENT_TOPICS)
        if topic in existing
        for partition in existing[topic].partitions
    }
    if not wanted:
        return
    found = admin.list_offsets(wanted).values()
    newest_ms = max(future.result(_TIMEOUT_S).timestamp for future in found)
    ahead_s = newest_ms / 1000 - time.time()
    if ahead_s > CLOCK_SKEW_S_MAX:
        yield Finding(
            "clock",
            "problem",
            f"the newest event was produced {ahead_s:.1f} s after now",
            "synchronise the clocks of the producers and this machine (NTP)",
        )
    elif newest_ms >= 0:
        yield Finding("clock", "ok", f"the newest event was produced {-ahead_s:.1f} s ago")
    else:
        yield Finding("clock", "ok", "no event was produced yet")


def _describe(
    admin: AdminClient, kind: ResourceType, names: list[str]
) -> dict[str, dict[str, str]]:
    """name -> its settings as the broker reports them."""
    if not names:
        return {}
    futures = admin.describe_configs([ConfigResource(kind, name) for name in names])
    return {
        resource.name: {key: str(entry.value) for key, entry in future.result(_TIMEOUT_S).items()}
        for resource, future in futures.items()
    }

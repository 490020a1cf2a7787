"""The join's settings as text, made from the config: Flink's, and those of its Kafka clients. Knows
nothing of PyFlink; `stream.topology` is the job that they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from settings.config import Config
from settings.credentials import resolved
from settings.errors import ConfigError
from topics.names import join_group, record_bytes_max

_WATERMARK_INTERVAL_MS = 100
_DISCOVERY_MS = 10_000
"""How soon a partition that was added is read. Its first events wait so long, nothing is lost."""
_BOUNDED_INTERVAL_MS = 10_000
"""Between checkpoints of a join of history: nobody waits for its records to become visible."""
_BUFFER_TIMEOUT_MS = 10
"""How long a row may wait in a network buffer: a part of freshness."""
_POLL_RECORDS = 1_000
"""Of one partition at a time: what it gets ahead of the others before it is held back."""
_LINGER_MS = 5
_BOUNDED_LINGER_MS = 50
"""How long a batch waits to be filled: of history nobody waits for the first record."""
_BATCH_BYTES = 128 << 10
_BOUNDED_BATCH_BYTES = 512 << 10
"""Each batch has a compressor of its own, with buffers of its own."""
_BYTES = "org.apache.flink.kafka.shaded.org.apache.kafka.common.serialization.ByteArrayDeserializer"
JAR_CONTRACT = 5
"""What Python and the operator's jar agree on: constructors and their arguments. Raised by one in
both (`stream/java/src/main/resources/dev/headwater/join/contract`) when one changes."""
OPERATORS = {
    "events": "headwater-events",
    "join": "headwater-join",
    "verdicts": "headwater-verdicts",
}
"""Our name -> Flink's uid, by which state is found again: never changed within a plan."""
_LIBRDKAFKA_ONLY = (
    "ssl.certificate.",
    "ssl.key.",
    "ssl.keystore.",
    "sasl.oauthbearer.",
    "enable.ssl.certificate.verification",
)


def flink_settings(
    config: Config,
    *,
    state_dir: Path,
    jars: Sequence[Path],
    rest_port: int,
    bounded: bool,
    restore_from: str | None,
) -> dict[str, str]:
    """Flink's configuration for one run. `restore_from` is a retained checkpoint's path."""
    join = config.join
    interval = (
        max(join.checkpoint_interval, _BOUNDED_INTERVAL_MS)
        if bounded
        else (join.checkpoint_interval)
    )
    settings = {
        "execution.target": "local",
        "execution.attached": "true",
        "pipeline.name": job_name(config),
        "pipeline.jars": ";".join(jar.resolve().as_uri() for jar in jars),
        "pipeline.object-reuse": "true",
        "pipeline.auto-generate-uids": "false",  # an operator without a name of ours is refused
        "pipeline.auto-watermark-interval": f"{_WATERMARK_INTERVAL_MS} ms",
        "parallelism.default": str(join.parallelism),
        "metrics.fetcher.update-interval": "1000 ms",
        "rest.bind-address": "127.0.0.1",
        "rest.address": "127.0.0.1",
        "rest.bind-port": str(rest_port),
        "rest.port": str(rest_port),
        "jobmanager.bind-host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "execution.buffer-timeout.interval": f"{_BUFFER_TIMEOUT_MS} ms",
        "execution.checkpointing.interval": f"{interval} ms",
        # State on the heap is written whole: where that takes long, events get half of the time.
        "execution.checkpointing.min-pause": f"{interval // 2} ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.dir": (state_dir.resolve() / "checkpoints").as_uri(),
        "execution.checkpointing.num-retained": "3",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        # Failing ones are waited out, not turned into restarts; stream/stuck.py ends the wait.
        "execution.checkpointing.tolerable-failed-checkpoints": "1000000",
        # A broker that restarts within seconds is waited for; one that is gone for good must end
        # the process with its reason instead of hiding behind restarts.
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "200 ms",
        "restart-strategy.exponential-delay.max-backoff": "5 s",
        "restart-strategy.exponential-delay.backoff-multiplier": "2.0",
        "restart-strategy.exponential-delay.reset-backoff-threshold": "1 min",
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": "10",
        "state.backend.type": join.state_backend,
        "taskmanager.memory.managed.size": f"{join.managed_memory_mb} mb",
    }
    if join.state_backend == "rocksdb":
        settings |= {
            "execution.checkpointing.incremental": "true",
            "state.backend.rocksdb.predefined-options": "SPINNING_DISK_OPTIMIZED_HIGH_MEM",
        }
    if restore_from is not None:
        settings["execution.state-recovery.path"] = restore_from
        settings["execution.state-recovery.claim-mode"] = "CLAIM"
    return settings


def job_name(config: Config) -> str:
    """Flink's name of the job; one join per name may run on a cluster."""
    return f"headwater join {config.kafka.topic_prefix}"


def source_properties(config: Config, bootstrap: str) -> dict[str, str]:
    """Of the source's Kafka clients, all that Flink's builder of sources would add among them."""
    return client_properties(config, bootstrap) | {
        "key.deserializer": _BYTES,
        "value.deserializer": _BYTES,
        "enable.auto.commit": "false",
        "auto.offset.reset": "earliest",
        "client.id.prefix": join_group(config),
        "max.poll.records": str(_POLL_RECORDS),
        "group.id": join_group(config),
        "max.partition.fetch.bytes": str(max(1_048_576, record_bytes_max(config))),
        "client.dns.lookup": "use_all_dns_ips",
        "partition.discovery.interval.ms": str(_DISCOVERY_MS),
    }


def sink_properties(config: Config, bootstrap: str, *, bounded: bool) -> dict[str, str]:
    """Of the sink's producers; those of every job that is compared with the join, too."""
    return client_properties(config, bootstrap) | {
        "compression.type": "lz4",
        "linger.ms": str(_BOUNDED_LINGER_MS if bounded else _LINGER_MS),
        "batch.size": str(_BOUNDED_BATCH_BYTES if bounded else _BATCH_BYTES),
        "transaction.timeout.ms": str(config.join.transaction_timeout),
    }


def client_properties(config: Config, bootstrap: str) -> dict[str, str]:
    """Of every Kafka client in the job. Raises ConfigError for what Java has no words for."""
    properties = {
        "bootstrap.servers": bootstrap,
        "reconnect.backoff.ms": "50",
        "reconnect.backoff.max.ms": "1000",
    }
    return properties | _java_client(config)


def _java_client(config: Config) -> dict[str, str]:
    """librdkafka's security settings in the Java client's words; its tuning is not for Java.

    Raises ConfigError for those that have no such words: left out, they would fail far from here.
    """
    extra = resolved(config.kafka.extra)
    if unknown := [name for name in extra if name.startswith(_LIBRDKAFKA_ONLY)]:
        raise ConfigError(
            f"kafka.extra: the join's client has no {', '.join(unknown)}; expected sasl.mechanism, "
            "sasl.username, sasl.password and ssl.ca.location"
        )
    java: dict[str, str] = {}
    for name, value in extra.items():
        if name == "security.protocol":
            java[name] = str(value).upper()
        elif name == "ssl.endpoint.identification.algorithm":
            java[name] = "" if value == "none" else str(value)
        elif name in ("sasl.mechanism", "sasl.mechanisms"):
            java["sasl.mechanism"] = str(value)
        elif name == "ssl.ca.location":
            java |= {"ssl.truststore.location": str(value), "ssl.truststore.type": "PEM"}
    if "sasl.username" in extra:
        module = "plain.PlainLoginModule"
        if java.get("sasl.mechanism", "PLAIN").startswith("SCRAM"):
            module = "scram.ScramLoginModule"
        user, word = (
            str(extra.get(f"sasl.{key}", "")).replace("\\", "\\\\").replace('"', '\\"')
            for key in ("username", "password")
        )
        java["sasl.jaas.config"] = (
            f"org.apache.flink.kafka.shaded.org.apache.kafka.common.security.{module}"
            f' required username="{user}" password="{word}";'
        )
    return java

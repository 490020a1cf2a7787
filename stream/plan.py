"""The join as text: Flink's settings and the SQL, made from the config. Knows nothing of PyFlink.

The plan: two Kafka tables in the `headwater-event` format (validated once, a watermark per
partition) -> union -> the process table function `attribution_join` keyed by (user_id, item_id)
-> one transactional Kafka sink over all output topics, so that one transaction holds every verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from settings.config import Config
from settings.credentials import resolved
from settings.errors import ConfigError
from stream.floor import FILE as FLOOR_FILE
from topics.names import (
    CONVERSIONS,
    IMPRESSIONS,
    JOIN_OUTPUTS,
    STREAMS,
    Stream,
    join_group,
    record_bytes_max,
)

_WATERMARK_INTERVAL_MS = 100
_DISCOVERY = "10000 ms"
"""How soon a partition that was added is read. Its first events wait so long, nothing is lost."""
_BUFFER_TIMEOUT_MS = 10
"""How long a row may wait in a network buffer: a part of freshness."""
SINK_SETTINGS = {
    "sink.delivery-guarantee": "exactly-once",
    # One prefix for ever, ids from a pool: what a killed run left open is found and aborted by
    # the next one, and ids do not pile up on the broker at two checkpoints a second.
    "sink.transaction-naming-strategy": "POOLING",
    "properties.compression.type": "lz4",
    "properties.linger.ms": "5",
    "properties.batch.size": "131072",
}
"""Of every job that is compared with the join, too."""
JAR_CONTRACT = 2
"""What this module and the operator's jar agree on: table options, job parameters, columns. Raised
by one in both (`stream/java/src/main/resources/dev/headwater/join/contract`) when one changes."""
_LIBRDKAFKA_ONLY = (
    "ssl.certificate.",
    "ssl.key.",
    "ssl.keystore.",
    "sasl.oauthbearer.",
    "enable.ssl.certificate.verification",
)
SOURCE_SETTINGS = {"properties.max.poll.records": "4000"}


def flink_settings(
    config: Config,
    *,
    state_dir: Path,
    jars: Sequence[Path],
    rest_port: int,
    bounded: bool,
    restore_from: str | None,
    watermark_ms: int,
) -> dict[str, str]:
    """Flink's configuration for one run. `restore_from` is a retained checkpoint's path;
    `watermark_ms` is what the join had reached before (-1 = nothing): Flink's own starts anew.
    """
    join = config.join
    settings = {
        "pipeline.name": job_name(config),
        "pipeline.jars": ";".join(jar.resolve().as_uri() for jar in jars),
        "pipeline.object-reuse": "true",
        "pipeline.auto-watermark-interval": f"{_WATERMARK_INTERVAL_MS} ms",
        "pipeline.global-job-parameters": _job_parameters(config, watermark_ms, state_dir),
        "parallelism.default": str(join.parallelism),
        "metrics.fetcher.update-interval": "1000 ms",
        "rest.bind-address": "127.0.0.1",
        "rest.address": "127.0.0.1",
        "rest.bind-port": str(rest_port),
        "rest.port": str(rest_port),
        "jobmanager.bind-host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "execution.buffer-timeout.interval": f"{_BUFFER_TIMEOUT_MS} ms",
        "execution.checkpointing.interval": f"{join.checkpoint_interval} ms",
        # State on the heap is written whole: where that takes long, events get half of the time.
        "execution.checkpointing.min-pause": f"{join.checkpoint_interval // 2} ms",
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
        "table.exec.source.idle-timeout": f"{0 if bounded else join.idle_timeout} ms",
        "table.exec.sink.upsert-materialize": "NONE",
        "table.local-time-zone": "UTC",
        # A compiled plan names tables; what they are is said by this run's statements.
        "table.plan.compile.catalog-objects": "IDENTIFIER",
        "table.plan.restore.catalog-objects": "IDENTIFIER",
    }
    if join.state_backend == "rocksdb":
        settings |= {
            "execution.checkpointing.incremental": "true",
            "state.backend.rocksdb.timer-service.factory": "HEAP",
            "state.backend.rocksdb.predefined-options": "SPINNING_DISK_OPTIMIZED_HIGH_MEM",
        }
    if restore_from is not None:
        settings["execution.state-recovery.path"] = restore_from
        settings["execution.state-recovery.claim-mode"] = "CLAIM"
    return settings


def job_name(config: Config) -> str:
    """Flink's name of the job; one join per name may run on a cluster."""
    return f"headwater join {config.kafka.topic_prefix}"


def statements(config: Config, bootstrap: str, *, bounded: bool) -> list[str]:
    """The SQL in order; the last one is the INSERT that runs for ever (or to the end)."""
    return [
        "CREATE TEMPORARY SYSTEM FUNCTION event_clock AS 'dev.headwater.join.EventClock'",
        "CREATE TEMPORARY SYSTEM FUNCTION attribution_join AS 'dev.headwater.join.AttributionJoin'",
        *(_source(config, bootstrap, stream, bounded=bounded) for stream in STREAMS),
        _union(),
        _sink(config, bootstrap),
        """INSERT INTO verdicts SELECT topic, k, v, headers FROM attribution_join(
            `in` => TABLE events PARTITION BY (user_id, item_id), uid => 'join')""",
    ]


def _source(config: Config, bootstrap: str, stream: Stream, *, bounded: bool) -> str:
    number = STREAMS.index(stream)
    clock = (
        f"event_clock({number}, source_partition, source_offset, event_ms,"
        f" CAST({config.events.future_bound} AS BIGINT))"
    )
    behind_ms = config.join.lateness + 1  # an event exactly `lateness` out of order is on time
    options = (
        _kafka_options(config, bootstrap)
        | SOURCE_SETTINGS
        | {
            "topic": config.topic(stream),
            "properties.group.id": join_group(config),
            "properties.max.partition.fetch.bytes": str(max(1_048_576, record_bytes_max(config))),
            "properties.client.dns.lookup": "use_all_dns_ips",
            "scan.startup.mode": "earliest-offset",
            "scan.topic-partition-discovery.interval": "0 ms" if bounded else _DISCOVERY,
            "key.format": "headwater-event",
            "key.headwater-event.stream": "key",
            "key.fields": "k",
            "value.format": "headwater-event",
            "value.headwater-event.stream": stream,
            "value.headwater-event.kinds": ",".join(config.kinds),
            "value.headwater-event.bytes-max": str(config.events.bytes_max),
            "value.fields-include": "EXCEPT_KEY",
        }
    )
    if stream == IMPRESSIONS and config.join.negatives_kept_by_domain:
        options["value.headwater-event.with-domain"] = "true"
    if bounded:
        options["scan.bounded.mode"] = "latest-offset"
    return f"""CREATE TEMPORARY TABLE {stream} (
        k BYTES, id STRING, user_id STRING, item_id STRING, event_ms BIGINT, kind STRING,
        named STRING, amount DOUBLE, payload BYTES, error STRING,
        source_partition INT METADATA FROM 'partition' VIRTUAL,
        source_offset BIGINT METADATA FROM 'offset' VIRTUAL,
        produced TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
        clock_ms AS {clock},
        passed AS TO_TIMESTAMP_LTZ({clock} - CAST({behind_ms} AS BIGINT), 3),
        WATERMARK FOR passed AS passed
    ) WITH ({_with(options)})"""


def _union() -> str:
    columns = (
        "k, id, user_id, item_id, event_ms, kind, named, amount, payload, error,"
        " source_partition, source_offset, produced, clock_ms"
    )
    selects = (
        f"SELECT CAST({number} AS INT) AS `stream`, {columns} FROM {stream}"  # noqa: S608  our own names
        for number, stream in enumerate((IMPRESSIONS, CONVERSIONS))
    )
    return "CREATE TEMPORARY VIEW events AS " + " UNION ALL ".join(selects)


def _sink(config: Config, bootstrap: str) -> str:
    prefix = f"{config.kafka.topic_prefix}-join"
    options = (
        _kafka_options(config, bootstrap)
        | SINK_SETTINGS
        | {
            "topic": ";".join(config.topic(name) for name in JOIN_OUTPUTS),
            "key.format": "raw",
            "key.fields": "k",
            "value.format": "raw",
            "value.fields-include": "EXCEPT_KEY",
            "sink.transactional-id-prefix": prefix,
            "properties.transaction.timeout.ms": str(config.join.transaction_timeout),
            "properties.max.request.size": str(record_bytes_max(config)),
        }
    )
    return f"""CREATE TEMPORARY TABLE verdicts (
        topic STRING METADATA, k BYTES, v BYTES, headers MAP<STRING, BYTES> METADATA
    ) WITH ({_with(options)})"""


def _kafka_options(config: Config, bootstrap: str) -> dict[str, str]:
    options = {
        "connector": "kafka",
        "properties.bootstrap.servers": bootstrap,
        "properties.reconnect.backoff.ms": "50",
        "properties.reconnect.backoff.max.ms": "1000",
    }
    return options | {f"properties.{k}": v for k, v in _java_client(config).items()}


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


def _job_parameters(config: Config, watermark_ms: int, state_dir: Path) -> str:
    join = config.join
    kinds = ";".join(f"{kind}={spec.window}:{spec.value}" for kind, spec in config.kinds.items())
    by_domain = join.negatives_kept_by_domain.items()
    parameters = {
        "headwater.topic_prefix": config.kafka.topic_prefix,
        "headwater.kinds": kinds,
        "headwater.policy": join.policy,
        "headwater.elapsed_ms": str(join.elapsed),
        "headwater.lateness_ms": str(join.lateness),
        "headwater.negatives_kept": repr(join.negatives_kept),
        "headwater.negatives_kept_by_domain": ";".join(
            f"{name}={rate}" for name, rate in by_domain
        ),
        "headwater.future_bound_ms": str(config.events.future_bound),
        "headwater.watermark_ms": str(watermark_ms),
        "headwater.watermark_file": str(state_dir.resolve() / FLOOR_FILE),
    }
    return ",".join(f"{name}:'{value}'" for name, value in parameters.items())


def _with(options: Mapping[str, str]) -> str:
    return ", ".join(
        f"{_literal(name)} = {_literal(value)}" for name, value in sorted(options.items())
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

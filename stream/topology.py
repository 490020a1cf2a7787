"""The join as a Flink job: a source over both event topics, the keyed operator, one Kafka sink.

    both topics --validated once, a watermark per partition--> keyed by (user_id, item_id)
        --> AttributionJoin --every verdict, in one transaction per checkpoint--> the join's topics

PyFlink plans and submits; every record is handled by `stream/java`. Operators have names for ever
(`OPERATORS`): Flink finds their state by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from settings.config import Config
from stream.plan import OPERATORS, sink_properties, source_properties
from topics.names import CONVERSIONS, IMPRESSIONS, record_bytes_max

_FOR_EVER_MS = 2**62


def build(environment: Any, config: Config, bootstrap: str, *, bounded: bool) -> None:
    """Add the join to a PyFlink `StreamExecutionEnvironment`."""
    from pyflink.java_gateway import get_gateway

    jvm = get_gateway().jvm
    ours = jvm.dev.headwater.join
    settings = _settings(ours, config)
    events = environment._j_stream_execution_environment.fromSource(
        _source(jvm, config, bootstrap, settings, bounded=bounded),
        _watermarks(jvm, config, bounded=bounded),
        "events",
    ).uid(OPERATORS["events"])
    operator = ours.AttributionJoin(settings, config.events.future_bound)
    verdicts = (
        _keyed(jvm, events, config)
        .transform("join", ours.RecordType.VERDICT, operator)
        .uid(OPERATORS["join"])
    )
    sink = ours.VerdictSink(_sink(jvm, config, bootstrap, bounded=bounded))
    verdicts.sinkTo(sink).name("verdicts").uid(OPERATORS["verdicts"])


def _keyed(jvm: Any, events: Any, config: Config) -> Any:
    """The events by pair. For one task all pairs are its own: they stay in it, and none is written
    down and read back between source and operator."""
    ours = jvm.dev.headwater.join
    key = (ours.Event.Key(), ours.RecordType.PAIR_KEY)
    if config.join.parallelism > 1:
        return events.keyBy(*key)
    streams = jvm.org.apache.flink.streaming.api.datastream.DataStreamUtils
    return streams.reinterpretAsKeyedStream(events, *key)


def _settings(ours: Any, config: Config) -> Any:
    """The operator's JoinSettings."""
    join = config.join
    kinds = ";".join(f"{kind}={spec.window}:{spec.value}" for kind, spec in config.kinds.items())
    by_domain = ";".join(f"{name}={rate}" for name, rate in join.negatives_kept_by_domain.items())
    return ours.JoinSettings.of(
        kinds,
        join.policy == "correct",
        join.elapsed,
        join.lateness,
        float(join.negatives_kept),
        by_domain,
    )


def _source(jvm: Any, config: Config, bootstrap: str, settings: Any, *, bounded: bool) -> Any:
    kafka = jvm.org.apache.flink.connector.kafka.source
    offsets = kafka.enumerator.initializer.OffsetsInitializer
    topics = jvm.java.util.ArrayList()
    for stream in (IMPRESSIONS, CONVERSIONS):
        topics.add(config.topic(stream))
    clients = _properties(jvm, source_properties(config, bootstrap))
    deserializer = jvm.dev.headwater.join.EventDeserializer(
        config.topic(IMPRESSIONS), settings, config.events.bytes_max, config.events.future_bound
    )
    builder = (
        kafka.KafkaSource.builder()
        .setTopics(topics)
        .setProperties(clients)
        .setStartingOffsets(offsets.earliest())
        .setDeserializer(deserializer)
    )
    source = (builder.setBounded(offsets.latest()) if bounded else builder).build()
    # What is held back for long would pass for idle, and the watermark would go on without it.
    idle_ms = 0 if bounded else config.join.idle_timeout
    held_max = idle_ms // 2 if idle_ms else _FOR_EVER_MS
    ahead = settings.longestWindowMs()
    return jvm.dev.headwater.join.AlignedSource(source, clients, deserializer, ahead, held_max)


def _watermarks(jvm: Any, config: Config, *, bounded: bool) -> Any:
    generators = jvm.dev.headwater.join.EventWatermarks.of(config.join.lateness)
    strategy = jvm.org.apache.flink.api.common.eventtime.WatermarkStrategy.forGenerator(generators)
    if bounded or not config.join.idle_timeout:
        return strategy  # history is read as fast as it comes: no partition of it is idle
    return strategy.withIdleness(jvm.java.time.Duration.ofMillis(config.join.idle_timeout))


def _sink(jvm: Any, config: Config, bootstrap: str, *, bounded: bool) -> Any:
    kafka = jvm.org.apache.flink.connector.kafka.sink
    return (
        kafka.KafkaSink.builder()
        .setKafkaProducerConfig(
            _properties(
                jvm,
                sink_properties(config, bootstrap, bounded=bounded)
                | {"max.request.size": str(record_bytes_max(config))},
            )
        )
        .setBootstrapServers(bootstrap)
        .setDeliveryGuarantee(jvm.org.apache.flink.connector.base.DeliveryGuarantee.EXACTLY_ONCE)
        .setTransactionalIdPrefix(f"{config.kafka.topic_prefix}-join")
        # One prefix for ever, ids from a pool: what a killed run left open is found and aborted by
        # the next one, and ids do not pile up on the broker at two checkpoints a second.
        .setTransactionNamingStrategy(kafka.TransactionNamingStrategy.POOLING)
        .setRecordSerializer(jvm.dev.headwater.join.VerdictSerializer(config.kafka.topic_prefix))
        .build()
    )


def _properties(jvm: Any, values: Mapping[str, str]) -> Any:
    properties = jvm.java.util.Properties()
    for name, value in values.items():
        properties.setProperty(name, value)
    return properties

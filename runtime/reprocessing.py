"""`reprocess late`: the bounded run of the join behind it; see `stream.late_again`."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path

from confluent_kafka import KafkaError, Message, Producer

from runtime.bounded_join import JoinVerbFailed, run_join
from runtime.jars import flink_jars, require_java
from runtime.shadow import delete_shadow, shadow_config
from settings.config import Config
from stream.asides import Source, read_asides, send_once
from stream.late_again import PastEvent, additions, is_correction, read_past
from stream.reprocess import Reprocessed
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.errors import TopicError
from topics.names import ATTRIBUTIONS, SAMPLES
from topics.scan import read_to_end


def reprocess_late(
    config: Config,
    bootstrap: str,
    *,
    since_ms: int = 0,
    limit: int | None = None,
    dry_run: bool = False,
) -> Reprocessed:
    """Join the late events with their pairs' history and append what that adds to the samples.

    `limit` bounds how many late events take part. Needs Java and the join's jars, and about half a
    minute for the run. Raises ToolMissing, TopicError, JoinVerbFailed.
    """
    asides, already = read_asides(config, bootstrap, "late", since_ms=since_ms)
    chosen = asides[:limit]
    sent = records = untaught = 0
    if chosen:
        past = read_past(config, bootstrap, chosen)
        prefix = f"{config.kafka.topic_prefix}-late-{uuid.uuid4().hex[:8]}"
        shadow = shadow_config(config, prefix, reads_live=False, bounded=True)
        shadow = shadow.model_copy(
            update={"kafka": shadow.kafka.model_copy(update={"partitions": 1})}
        )
        try:
            sources = _join_again(shadow, bootstrap, past.events)
            outputs = read_to_end(shadow, bootstrap, [ATTRIBUTIONS, SAMPLES])
            groups = additions(past, chosen, outputs, sources)
        finally:
            delete_shadow(shadow, bootstrap)
        sent, records = len(groups), sum(len(own) for _, own in groups)
        if config.join.policy == "wait":
            untaught = sum(is_correction(record) for _, own in groups for record in own)
        if not dry_run:
            sent, records = send_once(config, bootstrap, groups)
    return Reprocessed(
        topic="late",
        waiting=len(asides),
        already=already,
        sent=sent,
        records=records,
        refused=[],
        refused_total=0,
        dry_run=dry_run,
        untaught=untaught,
    )


def _join_again(shadow: Config, bootstrap: str, events: list[PastEvent]) -> dict[Source, Source]:
    """Run the join over `events`; where each lies in the shadow's topics -> its own source."""
    require_java()
    flink_jars()
    ensure_topics(shadow, bootstrap)
    sources = _send(shadow, bootstrap, events)
    work = Path(tempfile.mkdtemp(prefix="headwater-late-"))
    try:
        run_join(shadow, bootstrap, work, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    from stream.audit import audit  # polars loads slowly

    report = audit(shadow, bootstrap, bounded=True)
    if not report.balanced:
        raise JoinVerbFailed(
            f"the run over late events does not balance, nothing was appended: {report.differences}"
        )
    return sources


def _send(shadow: Config, bootstrap: str, events: list[PastEvent]) -> dict[Source, Source]:
    sources: dict[Source, Source] = {}
    errors: list[KafkaError] = []
    producer = Producer(producer_settings(shadow, bootstrap))
    for event in events:

        def written(error: KafkaError | None, message: Message, event: PastEvent = event) -> None:
            if error is not None:
                errors.append(error)
            else:
                at = (event.stream, message.partition() or 0, message.offset() or 0)
                sources[at] = event.source

        while True:
            try:
                producer.produce(
                    shadow.topic(event.stream),
                    event.value,
                    event.key,
                    timestamp=event.produced_ms,
                    on_delivery=written,
                )
            except BufferError:
                producer.poll(0.1)
            else:
                producer.poll(0)
                break
    if producer.flush(120) or errors:
        raise TopicError(f"the late events' history was not written: {errors[:1]}")
    return sources

"""Kafka's errors become ours by what the operator does; nothing of librdkafka leaks through."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from topics.errors import (
    PublishAborted,
    PublisherFenced,
    RecordTooLarge,
    TopicClientFatal,
    TopicError,
    TopicUnauthorized,
    TopicUnavailable,
    TopicUnknown,
    kafka_errors,
    topic_error,
)

CASES: list[tuple[KafkaError, type[TopicError]]] = [
    (KafkaError(KafkaError._FENCED), PublisherFenced),
    (KafkaError(KafkaError.INVALID_PRODUCER_EPOCH), PublisherFenced),
    (KafkaError(KafkaError._STATE, "broken", True), TopicClientFatal),
    (KafkaError(KafkaError._STATE, "again", False, False, True), PublishAborted),
    (KafkaError(KafkaError.SASL_AUTHENTICATION_FAILED), TopicUnauthorized),
    (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), TopicUnauthorized),
    (KafkaError(KafkaError._SSL), TopicUnauthorized),
    (KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), TopicUnknown),
    (KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), RecordTooLarge),
    (KafkaError(KafkaError._TIMED_OUT), TopicUnavailable),
    (KafkaError(KafkaError._ALL_BROKERS_DOWN), TopicUnavailable),
    (KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION), TopicUnavailable),
    (KafkaError(KafkaError._STATE, "later", False, True), TopicUnavailable),
    (KafkaError(KafkaError.INVALID_CONFIG), TopicError),
]


@pytest.fixture(autouse=True)
def nobody_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process have been: that is remembered for a minute."""
    monkeypatch.setattr("topics.errors._not_let_in", None)


@pytest.mark.parametrize(("error", "expected"), CASES)
def test_error_is_named_with_what_was_being_done(
    error: KafkaError, expected: type[TopicError]
) -> None:
    found = topic_error(error, "reading topic x")
    assert type(found) is expected
    assert str(found).startswith("reading topic x: ")
    assert error.name() in str(found)
    with pytest.raises(expected) as caught, kafka_errors("writing topic y"):
        raise KafkaException(error)
    assert isinstance(caught.value.__cause__, KafkaException)

"""What can go wrong between a process and Kafka, by what the operator or the caller does then.

TopicError                    base; never raised bare by headwater's own checks
|-- TopicUnavailable          broker away, timeout, leader election: retry
|   `-- PublishAborted        one version's transaction was aborted cleanly: publish it again
|-- TopicUnauthorized         credentials or ACLs
|-- TopicUnknown              a topic does not exist
|-- TopicMismatch             a topic exists with another layout than the config's
|-- VersionGone               an old version cannot be read back whole
|-- RecordTooLarge            one record is over the broker's or topic's limit
|-- RecordInvalid             bytes that are not the record they claim to be
|   `-- WireVersionError      a representation written by a newer (or older) headwater
`-- TopicClientFatal          the client object is dead: the process must exit
    `-- PublisherFenced       another process took over this transactional id
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException


class TopicError(Exception):
    """Base of all errors of this package. Operator action: read the message; it names the topic."""


class TopicUnavailable(TopicError):
    """Kafka did not answer in time. Operator action: none if it passes; else check the broker."""


class PublishAborted(TopicUnavailable):
    """A version's transaction was aborted; readers saw nothing. Operator action: none, retried."""


class TopicUnauthorized(TopicError):
    """Credentials or ACLs refuse. Operator action: correct kafka.extra (sasl.*, ssl.*) or ACLs."""


class TopicUnknown(TopicError):
    """A topic is not there. Operator action: start the stack once, it creates its topics; or check
    kafka.topic_prefix."""


class TopicMismatch(TopicError):
    """A topic's layout differs from the config. Operator action: set the named config back, or use
    another kafka.topic_prefix."""


class VersionGone(TopicError):
    """A version is not kept (any more). Operator action: roll back to one of those named."""


class RecordTooLarge(TopicError):
    """One record exceeds a size limit. Operator action: raise events.bytes_max and the topic's
    max.message.bytes together, or drop the record."""


class RecordInvalid(TopicError):
    """Bytes that are not the record they should be. Operator action: find who else writes there."""


class WireVersionError(RecordInvalid):
    """A record in a wire version that this headwater does not know. Operator action: upgrade
    the reader to the writer's release."""


class TopicClientFatal(TopicError):
    """The Kafka client cannot go on. Operator action: none; the process exits and is restarted."""


class PublisherFenced(TopicClientFatal):
    """A newer process with the same transactional id took over. Operator action: make sure that
    only one trainer runs per kafka.topic_prefix; this one must exit."""


_KEPT_SECONDS = 60.0
_principal = ""
_not_let_in: tuple[float, str] | None = None


def name_principal(name: str) -> None:
    """Who this process is to Kafka, for what is said of a refusal; empty = not authenticated."""
    global _principal  # noqa: PLW0603  a process has one principal, and errors are made far away
    _principal = name


def note_client_error(error: KafkaError) -> None:
    """librdkafka's error callback: calls of a client that was not let in only say, much later, that
    no broker answered; why is told here."""
    global _not_let_in  # noqa: PLW0603
    if error.code() in _UNTRUSTED:
        _not_let_in = (time.monotonic(), error.str())


_FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
_UNTRUSTED = (
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
)
_UNAUTHORIZED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    *_UNTRUSTED,
)
_UNKNOWN = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
_UNANSWERED = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT)
_UNAVAILABLE = (
    *_UNANSWERED,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._QUEUE_FULL,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
)


def topic_error(error: KafkaError | KafkaException, doing: str) -> TopicError:
    """The error of the tree above for Kafka's `error`, met while `doing` (lower case, names)."""
    if isinstance(error, KafkaException):
        return topic_error(error.args[0], doing)
    text = f"{doing}: {error.str()} ({error.name()})"
    code = error.code()
    if code in _FENCED:
        return PublisherFenced(f"{text}: another process uses the same transactional id")
    if code not in _UNAUTHORIZED:  # no retry helps, whatever else the client makes of it
        if error.fatal():
            return TopicClientFatal(text)
        if error.txn_requires_abort():
            return PublishAborted(text)
    if code in _UNANSWERED and _not_let_in and time.monotonic() - _not_let_in[0] < _KEPT_SECONDS:
        text, code = f"{text}: {_not_let_in[1]}", KafkaError._AUTHENTICATION
    if code in _UNAUTHORIZED:
        text += _refused(code)
    kinds: tuple[tuple[tuple[int, ...], type[TopicError]], ...] = (
        (_UNAUTHORIZED, TopicUnauthorized),
        (_UNKNOWN, TopicUnknown),
        (_TOO_LARGE, RecordTooLarge),
        (_UNAVAILABLE, TopicUnavailable),
    )
    otherwise = TopicUnavailable if error.retriable() else TopicError
    return next((kind for codes, kind in kinds if code in codes), otherwise)(text)


def _refused(code: int) -> str:
    who = f"User:{_principal}" if _principal else "this process, which names no sasl.username,"
    if code in _UNTRUSTED:
        return f": {who} was not let in; check kafka.extra (sasl.*, ssl.*)"
    return f": {who} has no such right; `headwater acls` prints what each process needs"


@contextmanager
def kafka_errors(doing: str) -> Iterator[None]:
    """Raise Kafka's exceptions from the block as `TopicError`s, the original chained."""
    try:
        yield
    except KafkaException as error:
        raise topic_error(error, doing) from error

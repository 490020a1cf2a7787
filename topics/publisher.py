"""Writes one version of representations and the manifest that closes it, in one transaction.

The publisher knows no store: the caller keeps a version's encoded records until `publish` has
returned, and after a crash publishes them again, byte for byte. That is harmless: readers fold by
id and version, so a version written twice is the version.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from settings.config import Config
from topics.client import producer_settings
from topics.errors import (
    PublishAborted,
    PublisherFenced,
    TopicClientFatal,
    TopicUnauthorized,
    TopicUnavailable,
    topic_error,
)
from topics.manifest import (
    Manifest,
    PartitionOffsets,
    decode_manifest,
    encode_manifest,
    manifest_key,
)
from topics.names import MANIFEST, REPRESENTATION_TOPICS
from topics.representation import Headers
from topics.scan import end_offsets, read_to_end

Record = tuple[str, bytes, bytes | None, Headers]
"""(topic without prefix, key, value or None for a tombstone, headers)."""


@contextmanager
def _client_errors(producer: Producer) -> Iterator[None]:
    """A fatal error that arrives while delivery callbacks run surfaces from the client as a
    SystemError; raise the KafkaException behind it instead."""
    try:
        yield
    except SystemError as error:
        behind = error.__cause__ or error.__context__
        if isinstance(behind, KafkaException):
            raise behind from None
        # Lost on its way through a callback. A client that is dead says so to every further call;
        # this one changes nothing in an open transaction.
        try:
            producer.begin_transaction()
        except KafkaException as fatal:
            if fatal.args[0].fatal():
                raise fatal from None
        raise


class Publisher:
    """The one writer of representations under `transactional_id`; a newer one fences this one.

    The constructor fences older ones and aborts what they left open, so that read_committed
    readers do not stall behind it. Not thread-safe.
    """

    def __init__(
        self,
        config: Config,
        bootstrap: str,
        transactional_id: str,
        *,
        timeout_seconds: float = 60.0,
    ) -> None:
        """Raises TopicUnavailable, TopicUnauthorized, TopicUnknown, PublisherFenced."""
        self._config = config
        self._timeout_seconds = timeout_seconds
        self._failure: KafkaError | None = None
        self._failed_topic = ""
        self._settings = producer_settings(config, bootstrap, transactional_id=transactional_id)
        self._in_doubt: Manifest | None = None
        self._is_open = False
        self._take_over()
        self._ends = end_offsets(config, bootstrap, REPRESENTATION_TOPICS)
        self.published: dict[int, Manifest] = {}
        """Manifests that the topic had at the start, by version."""
        self._manifests: set[int] = set()
        self.newest: Manifest | None = None
        """The newest manifest on the topic: what readers hold, or will."""
        for _, message in read_to_end(config, bootstrap, [MANIFEST]):
            value = message.value()
            if value is None:
                self._manifests.discard(int(message.key() or b"0"))
                self.published.pop(int(message.key() or b"0"), None)
            else:
                self.newest = decode_manifest(value)
                self.published[self.newest.version] = self.newest
                self._manifests.add(self.newest.version)

    def publish(self, version: int, records: Iterable[Record], manifest: Manifest) -> Manifest:
        """Write `records` and `manifest` (whose end_offsets are filled in here) as one transaction.

        Returns the manifest as written, once it is committed: a reader sees it some milliseconds
        later, when the broker has written the markers. Raises PublishAborted
        (readers saw nothing: call again with the same version), TopicUnavailable (the outcome is
        unknown: call again with the same version), PublisherFenced or another TopicClientFatal
        (exit the process), TopicUnauthorized, RecordTooLarge.
        """
        if not self._taken_over:  # the broker went away once more, nothing is open or in doubt
            self._take_over()
        if self._in_doubt is not None:
            known = self._commit(self._in_doubt)
            if known.version == version:
                return known
        if self._is_open:  # the broker was away when the last version was to be aborted
            self._abort_transaction()
        self._failure = None
        try:
            with _client_errors(self._producer):
                self._producer.begin_transaction()
                self._is_open = True
                for name, key, value, headers in records:
                    self._produce(self._config.topic(name), key, value, headers)
                self._flush()
                manifest = msgspec.structs.replace(
                    manifest, version=version, end_offsets=self._offsets_by_topic()
                )
                topic = self._config.topic(MANIFEST)
                self._produce(topic, manifest_key(version), encode_manifest(manifest), [])
                for old in self._expired(version):
                    self._produce(topic, manifest_key(old), None, [])
                self._flush()
        except (KafkaException, TopicUnavailable) as error:
            raise self._abort(version, error) from error
        return self._commit(manifest)

    def close(self) -> None:
        """Abort what is open, as far as the broker answers. Committed versions stay."""
        self._producer.purge()
        with (
            suppress(KafkaException),
            _client_errors(self._producer),
        ):  # a fenced one says so once more
            self._producer.flush(1)

    def _produce(self, topic: str, key: bytes, value: bytes | None, headers: Headers) -> None:
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                self._producer.produce(
                    topic, value=value, key=key, headers=[*headers], on_delivery=self._delivered
                )
            except BufferError:
                if time.monotonic() > deadline:
                    raise TopicUnavailable(f"{topic}: the producer's queue stays full") from None
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            if self._failure is None:
                self._failure, self._failed_topic = error, message.topic() or ""
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None and partition is not None and offset is not None
        # Records of an aborted transaction keep their offsets, so ends never need to go back.
        self._ends[topic.removeprefix(self._config.topic("")), partition] = offset + 1

    def _flush(self) -> None:
        waiting = self._producer.flush(self._timeout_seconds)
        if self._failure is not None:
            raise KafkaException(self._failure)
        if waiting:
            raise TopicUnavailable(
                f"{waiting} records were not acknowledged in {self._timeout_seconds:.0f} s"
            )

    def _offsets_by_topic(self) -> PartitionOffsets:
        offsets: PartitionOffsets = {name: {} for name in REPRESENTATION_TOPICS}
        for (name, partition), end in sorted(self._ends.items()):
            if name in offsets:  # the manifest's own topic is not among them
                offsets[name][partition] = end
        return offsets

    def _expired(self, version: int) -> Sequence[int]:
        """Versions whose manifests leave now, so that `publish.manifests_kept` remain."""
        kept = sorted({*self._manifests, version})[-self._config.publish.manifests_kept :]
        return sorted(self._manifests.difference(kept, (version,)))

    def _commit(self, manifest: Manifest) -> Manifest:
        self._in_doubt = manifest
        doing = f"committing version {manifest.version}"
        try:
            self._until_deadline(doing, self._producer.commit_transaction)
        except PublishAborted as error:
            self._in_doubt = None
            raise self._abort(manifest.version, error) from error
        self._in_doubt = None
        self._is_open = False
        self._manifests.difference_update(self._expired(manifest.version))
        self._manifests.add(manifest.version)
        self.newest = manifest
        return manifest

    def _abort(self, version: int, cause: Exception) -> Exception:
        """Abort the open transaction; the error to raise for `cause`."""
        doing = f"publishing version {version}"
        if self._failure is not None:
            doing += f" to {self._failed_topic}"
        if isinstance(cause, KafkaException):
            found: Exception = topic_error(self._reason(cause), doing)
        else:
            found = cause
        if isinstance(found, TopicClientFatal):
            return found
        if isinstance(found, TopicUnauthorized):  # nothing was let into it, so nothing is aborted
            return found
        self._abort_transaction()
        if type(found) in (TopicUnavailable, PublishAborted):
            return PublishAborted(f"{doing}: aborted, readers saw nothing: {found}")
        return found

    def _reason(self, cause: KafkaException) -> KafkaException:
        """Why the client threw away what was queued, where that is all that a delivery says: a
        transaction that it has given up cannot be committed, and the refusal names the reason."""
        if cause.args[0].code() == KafkaError._PURGE_QUEUE:
            try:
                with _client_errors(self._producer):
                    self._producer.commit_transaction(5)
            except KafkaException as reason:
                return reason
        return cause

    def _take_over(self) -> None:
        """Begin with a new producer: fence older ones, abort what they left open."""
        self._taken_over = False
        self._producer = Producer(self._settings)
        self._until_deadline("taking over the transactional id", self._producer.init_transactions)
        self._taken_over = True
        self._is_open = False

    def _abort_transaction(self) -> None:
        try:
            self._until_deadline("aborting a version", self._producer.abort_transaction)
        except PublisherFenced:
            raise
        except TopicClientFatal:
            # A broker that went down before it had noted the transaction knows of none to abort,
            # and the client takes its refusal for its own end. Nothing of it can be committed.
            self.close()
            self._take_over()
        else:
            self._is_open = False

    def _until_deadline(self, doing: str, call: Callable[[float], None]) -> None:
        """Call `call(timeout)`; what librdkafka says can be repeated is repeated until the
        deadline, then raised as TopicUnavailable."""
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                with _client_errors(self._producer):
                    call(max(1.0, deadline - time.monotonic()))
            except KafkaException as error:
                found = topic_error(error, doing)
                repeatable = error.args[0].retriable() and not isinstance(found, PublishAborted)
                if repeatable and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                raise found from error
            return

"""A process that reads, decodes and hashes samples ahead of the one that learns from them.

Reading a sample costs Python about as much as learning from it costs the matrix kernels, and the
two would take turns at one interpreter lock. So a child process makes the portions and sends them
through a pipe, in the order of the log, each with the offsets that belong to it. Nothing else is
shared: offsets are committed with the batch that they came with, and a child that dies takes
nothing along that the log does not hold.

Frames in both directions: u64 length, little-endian, then msgpack (to the child) or one byte for
the kind and the content (from it). The child makes a portion for each WANT; LOOKAHEAD are wanted
ahead, so under cut_by = "time" a busy learner finds larger portions, not more of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from settings.config import Config
from settings.logs import configure_logs
from topics import errors as topic_errors
from topics.errors import TopicError
from trainer import errors as trainer_errors
from trainer.errors import FeedDied, TrainerError
from trainer.feed import POLL_SECONDS, Feed
from trainer.garbage import collect_rarely
from trainer.portion import Portion, dump_portion, load_portion
from trainer.slots import Plan, plan_slots
from trainer.source import FileSource, KafkaSource, Offsets, Source, retry_while_away

LOOKAHEAD = 2
_READY, _PORTION, _END, _ERROR = b"R", b"P", b"E", b"X"
_GLANCE_SECONDS = 0.01
_CLOSE_SECONDS_MAX = 5.0
_PIPE_BYTES = 1 << 20
"""As much as Linux gives any user: a portion is some megabytes, and each filling of the pipe costs
a switch between the two processes."""


class Order(msgspec.Struct, tag_field="do", tag="open"):
    """What to read; the child's first message."""

    config: dict[str, Any]
    offsets: dict[str, dict[int, int]]
    bootstrap: str = ""
    """A broker, or:"""
    file: str = ""
    until_end: bool = False
    accept_gap: bool = False


class Want(msgspec.Struct, tag_field="do", tag="want"):
    """One more portion."""


class Told(msgspec.Struct, tag_field="do", tag="committed"):
    """The store holds everything below."""

    offsets: dict[str, dict[int, int]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Order | Want | Told)


class FeedProcess:
    """The learner's end: a `PortionSource`."""

    def __init__(self, order: Order, plan: Plan, stopping: Callable[[], bool]) -> None:
        """Start the child and wait until it has found the samples.

        Raises what opening the source raises (SourceGap, SourceLost, TopicError, OSError's text as
        TrainerError), and FeedDied.
        """
        self._plan = plan
        self.at_end = False
        to_child, orders = os.pipe()
        portions, from_child = os.pipe()
        with contextlib.suppress(OSError):  # the user's pipes may be used up: slower, not wrong
            fcntl.fcntl(portions, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "trainer.feed_process", str(to_child), str(from_child)],
                pass_fds=(to_child, from_child),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        finally:
            os.close(to_child)
            os.close(from_child)
        self._orders = os.fdopen(orders, "wb", buffering=0)
        self._portions = os.fdopen(portions, "rb", buffering=0)
        try:
            self._send(order)
            while not self._ready(POLL_SECONDS):
                if stopping():
                    raise trainer_errors.SourceLost("asked to stop before the samples were found")
            self._receive()
            for _ in range(LOOKAHEAD):
                self._send(Want())
        except BaseException:
            self.close()
            raise

    def take(self, stopping: Callable[[], bool]) -> Portion | None:
        """The next portion; raises what the source raised in the child, and FeedDied."""
        if self.at_end or not self._wait(stopping):
            return None
        try:
            portion = self._receive()
            if portion is not None:
                self._send(Want())
        except FeedDied:
            if stopping():  # whoever stopped us by group stopped the child, too
                return None
            raise
        return portion

    def take_ready(self, stopping: Callable[[], bool]) -> Portion | None:
        """The next portion if it is here already: the loop has its cold rows read ahead."""
        return self.take(stopping) if not self.at_end and self._ready(0) else None

    def committed(self, offsets: Offsets) -> None:
        """Passed on, for the consumer group; a child that is gone is found by `take`."""
        with contextlib.suppress(FeedDied):
            self._send(Told({topic: dict(each) for topic, each in offsets.items()}))

    def close(self) -> None:
        """The child ends when its pipes close."""
        self._orders.close()
        self._portions.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _wait(self, stopping: Callable[[], bool]) -> bool:
        """Whether a portion is there; up to POLL_SECONDS, and no longer than until `stopping`."""
        for _ in range(round(POLL_SECONDS / _GLANCE_SECONDS)):
            if self._ready(_GLANCE_SECONDS):
                return True
            if stopping():
                return False
        return False

    def _ready(self, seconds: float) -> bool:
        return bool(select.select([self._portions], [], [], seconds)[0])

    def _send(self, message: Order | Want | Told) -> None:
        try:
            _write(self._orders, [_encoder.encode(message)])
        except BrokenPipeError as error:
            if not self.at_end:
                raise FeedDied(self._epitaph()) from error

    def _receive(self) -> Portion | None:
        content = _read(self._portions)
        if content is None:
            raise FeedDied(self._epitaph())
        kind, content = content[:1].tobytes(), content[8:]
        if kind == _PORTION:
            return load_portion(content, self._plan)
        if kind == _ERROR:
            name, text = msgspec.msgpack.decode(content.data, type=tuple[str, str])
            raise _error(name, text)
        self.at_end = kind == _END
        return None

    def _epitaph(self) -> str:
        try:
            return f"the process that reads samples ended: exit code=`{self._child.wait(5)}`"
        except subprocess.TimeoutExpired:
            return "the process that reads samples closed its pipe"


def file_order(config: Config, samples: Path, offsets: Offsets) -> Order:
    """Order for `samples.jsonl`."""
    return Order(config.model_dump(mode="json"), _plain(offsets), file=str(samples))


def kafka_order(
    config: Config, bootstrap: str, offsets: Offsets, *, until_end: bool, accept_gap: bool
) -> Order:
    """Order for the topic of samples."""
    return Order(
        config.model_dump(mode="json"),
        _plain(offsets),
        bootstrap=bootstrap,
        until_end=until_end,
        accept_gap=accept_gap,
    )


def _plain(offsets: Offsets) -> dict[str, dict[int, int]]:
    return {topic: dict(each) for topic, each in offsets.items()}


def _error(name: str, text: str) -> Exception:
    """The child's error as one of ours, so that the operator is told the same."""
    for module in (trainer_errors, topic_errors):
        found = getattr(module, name, None)
        if isinstance(found, type) and issubclass(found, TrainerError | TopicError):
            return found(text)
    return TrainerError(f"{name}: {text}")


def _write(pipe: BinaryIO, buffers: list[bytes | memoryview]) -> None:
    whole = b"".join([sum(map(len, buffers)).to_bytes(8, "little"), *buffers])
    view = memoryview(whole)
    while view:
        view = view[pipe.write(view) :]


def _read(pipe: BinaryIO) -> Any:
    """uint8 array of the next frame; None at the end of the pipe."""
    head = _read_exactly(pipe, 8)
    return None if head is None else _read_exactly(pipe, int(head.view(np.int64)[0]))


def _read_exactly(pipe: BinaryIO, size: int) -> Any:
    array = np.empty(size, np.uint8)
    view = array.data
    while view:
        count = pipe.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return None
        view = view[count:]
    return array


# -- the child ------------------------------------------------------------------------------------


class _Child:
    """Reads orders, makes portions."""

    def __init__(self, orders: BinaryIO, portions: BinaryIO) -> None:
        self._orders, self._portions = orders, portions
        self._wanted = 0
        self._over = False
        self._told: dict[str, dict[int, int]] | None = None

    def run(self) -> None:
        """Until the learner closes its end."""
        first = self._next_order()
        if not isinstance(first, Order):
            return
        config = Config.model_validate(first.config)
        source: Source = retry_while_away(
            "finding the samples", lambda: _open(first, config), self._stopped
        )
        feed = Feed(source, plan_slots(config), config.trainer)
        collect_rarely()
        self._send(_READY, [])
        try:
            while not self._listen(0.0 if self._wanted else None):
                if self._told is not None:
                    feed.committed(self._told)
                    self._told = None
                if not self._wanted:
                    continue
                portion = feed.take(self._stopped)
                if portion is not None:
                    self._wanted -= 1
                    self._send(_PORTION, dump_portion(portion))
                elif feed.at_end:
                    self._wanted = 0
                    self._send(_END, [])
        except BrokenPipeError:
            raise
        except (TrainerError, TopicError, OSError) as error:
            self.fail(error)  # said before the closing, which a lost broker can hold up
        finally:
            # Where the broker is gone with the learner, closing may take for ever: nothing is lost
            # by not waiting, and nobody would end this process.
            end = threading.Timer(_CLOSE_SECONDS_MAX, os._exit, (0,))
            end.daemon = True
            end.start()
            feed.close()
            end.cancel()

    def fail(self, error: Exception) -> None:
        """Say why no more will come."""
        content = msgspec.msgpack.encode((type(error).__name__, str(error)))
        self._send(_ERROR, [content])

    def _stopped(self) -> bool:
        return self._listen(0.0)

    def _listen(self, seconds: float | None) -> bool:
        """Take the orders that are there; True once the learner is gone."""
        while not self._over and select.select([self._orders], [], [], seconds)[0]:
            order = self._next_order()
            if order is None:
                self._over = True
            elif isinstance(order, Told):
                self._told = order.offsets
            else:
                self._wanted += 1
            seconds = 0.0
        return self._over

    def _next_order(self) -> Order | Want | Told | None:
        content = _read(self._orders)
        return None if content is None else _decoder.decode(content.data)

    def _send(self, kind: bytes, buffers: list[bytes | memoryview]) -> None:
        _write(self._portions, [kind + bytes(7), *buffers])


def _open(order: Order, config: Config) -> Source:
    if order.file:
        return FileSource(Path(order.file), order.offsets)
    return KafkaSource(
        config,
        order.bootstrap,
        order.offsets,
        until_end=order.until_end,
        accept_gap=order.accept_gap,
    )


def main(orders_fd: int, portions_fd: int) -> int:
    """The child of `FeedProcess`."""
    configure_logs("feed")
    # Whoever asks the learner to stop (a terminal asks the whole group) gets its last commit; we
    # end when it closes the pipe, and at once when it dies.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with os.fdopen(orders_fd, "rb", buffering=0) as orders:
        portions = os.fdopen(portions_fd, "wb", buffering=0)
        child = _Child(orders, portions)
        try:
            child.run()
        except BrokenPipeError:
            return 0
        except (TrainerError, TopicError, OSError) as error:
            with contextlib.suppress(BrokenPipeError):
                child.fail(error)
        return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

"""The join's state machine and scanner at a high volume: `tests/java/PairDrive.java`, no Flink."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.java_classes import compiled

TOPICS = ("samples", "attributions", "late", "orphans", "duplicates", "undecodable")
_PIPE = subprocess.PIPE


class Record(NamedTuple):
    """One output; `offset` is the event's position in the input, `value` its JSON."""

    topic: str
    offset: int
    watermark_ms: int
    value: Any


class PairDrive:
    """Compiled once into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._classpath = compiled(folder, "PairDrive")

    def join(
        self,
        steps: Iterable[tuple[bytes, bytes | int]],
        kinds: Mapping[str, tuple[int, str]],
        *,
        policy: str,
        elapsed_ms: int,
        lateness_ms: int,
        negatives_kept: float,
        checkpoint_every: int,
    ) -> list[Record]:
        """`steps`: (b"I" | b"C", event bytes) or (b"W", watermark). `kinds`: window and policy."""
        words = ";".join(f"{kind}={window}:{value}" for kind, (window, value) in kinds.items())
        arguments = ["join", words, policy, elapsed_ms, lateness_ms, negatives_kept]
        sent = b"".join(
            tag + (struct.pack(">q", what) if isinstance(what, int) else _sized(what))
            for tag, what in steps
        )
        return list(_records(self._run([*arguments, "", checkpoint_every], sent + b"E")))

    def reasons(self, stream: str, kinds: Iterable[str], events: Iterable[bytes]) -> list[str]:
        """Why the scanner refuses each of `events`; empty where it does not."""
        sent = b"".join(b"B" + _sized(event) for event in events)
        found = self._run(["scan", stream, ",".join(kinds)], sent + b"E")
        reasons, at = [], 0
        while at < len(found):
            (length,) = struct.unpack_from(">H", found, at)
            reasons.append(found[at + 2 : at + 2 + length].decode(errors="replace"))
            at += 2 + length
        return reasons

    def decimals(self, numbers: Iterable[int]) -> list[str]:
        """Each as the join writes it."""
        found = self._run(["decimal", ",".join(map(str, numbers))], b"")
        return found.decode("ascii").split("x")[1:]

    def alignment(self) -> AlignmentDrive:
        """A process to be asked; close it."""
        command = ["java", "-cp", self._classpath, "dev.headwater.join.PairDrive", "align"]
        return AlignmentDrive(subprocess.Popen(command, stdin=_PIPE, stdout=_PIPE))

    def _run(self, arguments: list[Any], sent: bytes) -> bytes:
        command = ["java", "-cp", self._classpath, "dev.headwater.join.PairDrive"]
        done = subprocess.run(
            [*command, *map(str, arguments)], input=sent, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


class AlignmentDrive:
    """`SplitAlignment`, one after another; times in milliseconds."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._in, self._out = process, process.stdin, process.stdout

    def start(self, *, ahead: int, held_max: int, bounded: bool) -> None:
        """Forget the one before."""
        self._in.write(b"S" + struct.pack(">qq?", ahead, held_max, bounded))

    def note(self, split: str, event_ms: int, produced_ms: int, *, clocked: bool = True) -> None:
        told = struct.pack(">qq?", event_ms, produced_ms, clocked)
        self._in.write(b"N" + _utf(split) + told)

    def expect(self, split: str) -> None:
        self._in.write(b"X" + _utf(split))

    def remove(self, split: str) -> None:
        self._in.write(b"R" + _utf(split))

    def change(self, now_ms: int) -> tuple[set[str], set[str], bool]:
        """(to hold, to let go on, whether any is held then)"""
        self._in.write(b"Q" + struct.pack(">q", now_ms))
        self._in.flush()
        hold, release = (set(self._read_utf().split()) for _ in range(2))
        return hold, release, self._out.read(1) == b"\1"

    def close(self) -> None:
        self._in.close()
        assert self._process.wait(30) == 0
        self._out.close()

    def _read_utf(self) -> str:
        (length,) = struct.unpack(">H", self._out.read(2))
        return self._out.read(length).decode()


def _utf(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode("ascii")


def _sized(content: bytes) -> bytes:
    return struct.pack(">i", len(content)) + content


def _records(found: bytes) -> Iterator[Record]:
    at = 0
    while at < len(found):
        topic, offset, watermark_ms, length = struct.unpack_from(">bqqi", found, at)
        at += 21
        yield Record(TOPICS[topic], offset, watermark_ms, json.loads(found[at : at + length]))
        at += length

"""The join's state machine and scanner at a high volume: `tests/java/PairDrive.java`, no Flink."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyflink

from stream.job import jar_paths

TOPICS = ("samples", "attributions", "late", "orphans", "duplicates", "undecodable")
_SOURCE = Path(__file__).with_name("java") / "PairDrive.java"


class Record(NamedTuple):
    """One output; `offset` is the event's position in the input, `value` its JSON."""

    topic: str
    offset: int
    watermark_ms: int
    value: Any


class PairDrive:
    """Compiled once into `folder`."""

    def __init__(self, folder: Path) -> None:
        flink = Path(pyflink.__file__).parent / "lib"
        jars = [*jar_paths(), *flink.glob("flink-table-api-java-uber-*.jar")]
        jars += flink.glob("flink-dist-*.jar")
        self._classpath = ":".join(map(str, [folder, *jars]))
        options = ["-cp", self._classpath, "-d", str(folder), str(_SOURCE)]
        subprocess.run(["javac", *options], check=True)

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

    def _run(self, arguments: list[Any], sent: bytes) -> bytes:
        command = ["java", "-cp", self._classpath, "dev.headwater.join.PairDrive"]
        done = subprocess.run(
            [*command, *map(str, arguments)], input=sent, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


def _sized(content: bytes) -> bytes:
    return struct.pack(">i", len(content)) + content


def _records(found: bytes) -> Iterator[Record]:
    at = 0
    while at < len(found):
        topic, offset, watermark_ms, length = struct.unpack_from(">bqqi", found, at)
        at += 21
        yield Record(TOPICS[topic], offset, watermark_ms, json.loads(found[at : at + length]))
        at += length

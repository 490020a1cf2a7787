"""Two files in, the join's verdict on every line out: the real broker and the real Flink job.

What comes out is in `DIRECTORY`: samples, late, orphans, duplicates, undecodable, attributions
(.jsonl) and audit.json. Samples are in the order in which they became known in event time, so that
`train --samples` learns in the order of the stream.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from runtime.broker import EmbeddedBroker
from runtime.child import spawn
from runtime.config_file import write_config
from runtime.event_files import merged_lines
from runtime.jars import flink_jars, require_java
from runtime.producing import EventProducer
from runtime.rendering import json_line
from settings.config import Config
from topics.admin import ensure_topics
from topics.names import ATTRIBUTIONS, SAMPLES, SIDE_TOPICS
from topics.scan import read_to_end

LINES = (*SIDE_TOPICS, ATTRIBUTIONS)


class JoinVerbFailed(RuntimeError):
    """The join did not end well. Operator action: read the reason; logs are kept where it says."""


class _Place(msgspec.Struct):
    """What decides a sample's place among the samples."""

    impression_id: str
    event_ms: int
    elapsed_ms: int
    revision: int


def run_bounded_join(
    config: Config,
    impressions: Path,
    conversions: Path,
    out: Path,
    *,
    arrival_order: bool,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    """(the audit report, refused lines as (stream, line number, bytes)).

    Raises ToolMissing, BrokerError, TopicError, OSError, JoinVerbFailed.
    """
    require_java()
    flink_jars()
    config = _for_a_broker_of_its_own(config)
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="headwater-join-"))
    try:
        say("starting a broker")
        with EmbeddedBroker(work / "broker") as broker:
            ensure_topics(config, broker.bootstrap)
            say("sending events in the order they arrived" if arrival_order else "sending events")
            refused = _send(config, broker.bootstrap, impressions, conversions, arrival_order)
            say("joining")
            run_join(config, broker.bootstrap, work, out)
            say("writing")
            _write_lines(config, broker.bootstrap, out)
            _write_samples(config, broker.bootstrap, out)
            say("auditing")
            from stream.audit import audit  # polars loads slowly, and only two verbs need it

            report = audit(config, broker.bootstrap, bounded=True)
            (out / "audit.json").write_bytes(
                msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return msgspec.to_builtins(report), refused


def _for_a_broker_of_its_own(config: Config) -> Config:
    kafka = config.kafka.model_copy(update={"bootstrap": "", "replication": 1, "extra": {}})
    # A partition without events must wait for the others' end, however long its reader takes.
    join = config.join.model_copy(update={"idle_timeout": 0})
    return config.model_copy(update={"kafka": kafka, "join": join})


def _send(
    config: Config, bootstrap: str, impressions: Path, conversions: Path, arrival_order: bool
) -> list[tuple[str, int, int]]:
    producer = EventProducer(config, bootstrap)
    refused: list[tuple[str, int, int]] = []
    for stream, number, line in merged_lines(impressions, conversions, arrival_order=arrival_order):
        if not producer.send(stream, line):
            refused.append((stream, number, len(line)))
    producer.flush()
    return refused


def run_join(config: Config, bootstrap: str, work: Path, out: Path) -> None:
    """`python -m stream --bounded` to its end. Raises JoinVerbFailed; its log is then in `out`."""
    write_config(config, work / "config.toml", comment="What this join runs with.")
    command = [
        *(sys.executable, "-P", "-m", "stream", "--bounded", "--bootstrap", bootstrap),
        *("--config", str(work / "config.toml"), "--state-dir", str(work / "join")),
    ]
    log_path = work / "join.log"
    with log_path.open("wb") as log:
        process = spawn(command, log)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                _wait_or_kill(process)
    if code != 0:
        lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        kept = out / "join.log"
        if kept != log_path:
            shutil.copy(log_path, kept)
        last = lines[-1] if lines else "it said nothing"
        raise JoinVerbFailed(f"the join ended with exit code {code}: {last} (log: {kept})")


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _write_lines(config: Config, bootstrap: str, out: Path) -> None:
    files = {name: (out / f"{name}.jsonl").open("wb") for name in LINES}
    try:
        for name, message in read_to_end(config, bootstrap, LINES):
            files[name].write(json_line(name, message) + b"\n")
    finally:
        for file in files.values():
            file.close()


def _write_samples(config: Config, bootstrap: str, out: Path) -> None:
    """By event_ms + elapsed_ms, when a sample's content was complete; ties by id, then revision."""
    decode = msgspec.json.Decoder(_Place).decode
    known, ids, revisions, offsets = array("q"), array("Q"), array("q"), array("q", [0])
    spool = out / "samples.jsonl.part"
    with spool.open("wb") as part:
        for name, message in read_to_end(config, bootstrap, [SAMPLES]):
            line = json_line(name, message) + b"\n"
            place = decode(line)
            known.append(place.event_ms + place.elapsed_ms)
            ids.append(xxhash.xxh3_64_intdigest(place.impression_id.encode()))
            revisions.append(place.revision)
            offsets.append(offsets[-1] + len(line))
            part.write(line)
    order = np.lexsort((np.array(revisions), np.array(ids), np.array(known)))
    with spool.open("rb") as part, (out / "samples.jsonl").open("wb") as samples:
        for n in order:
            part.seek(offsets[n])
            samples.write(part.read(offsets[n + 1] - offsets[n]))
    spool.unlink()

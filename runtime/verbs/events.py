"""`produce` and `consume`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import typer
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from runtime.choices import chosen, positive_number
from runtime.connection import BOOTSTRAP_OPTION, CONFIG_OPTION, DIR_OPTION, Connection, connect
from runtime.producing import EventProducer, Pace, event_time_ms
from runtime.rendering import json_line, text_line
from topics.client import consumer_settings
from topics.errors import topic_error
from topics.names import ALL_TOPICS, EVENT_TOPICS
from topics.scan import partitions_of, read_to_end, scan_group


def produce(
    name: str = typer.Argument(metavar="impressions|conversions", help="What each line is."),
    file: Path = typer.Argument(help="JSON lines; - reads standard input.", allow_dash=True),
    rate: float = typer.Option(None, "--rate", parser=positive_number, help="Lines per second."),
    speedup: float = typer.Option(
        None, "--speedup", parser=positive_number, help="Event time against wall time."
    ),
    fast: bool = typer.Option(False, "--as-fast-as-possible", help="No pauses (the default)."),
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
) -> None:
    """Send events, one JSON object per line, as they are."""
    chosen(name, EVENT_TOPICS, "kind of event")
    with _opened(file) as lines:
        at = connect(directory, bootstrap, config_file)
        _produce(name, lines, _pace(at, rate, speedup, fast), at)


def consume(
    name: str = typer.Argument(help=f"One of: {', '.join(ALL_TOPICS)}."),
    to_end: bool = typer.Option(False, "--to-end", help="Stop where the topic ends now."),
    jsonl: bool = typer.Option(
        False, "--jsonl", "--json", help="One JSON object per line, whole; else for reading."
    ),
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
) -> None:
    """Print a topic from its beginning, committed records only, until Ctrl-C or --to-end."""
    chosen(name, ALL_TOPICS, "topic")
    at = connect(directory, bootstrap, config_file)
    out = sys.stdout.buffer
    messages = read_to_end(at.config, at.bootstrap, [name]) if to_end else _follow(at, name)
    with contextlib.suppress(KeyboardInterrupt):
        for _, message in messages:
            line = json_line(name, message) if jsonl else text_line(name, message).encode()
            out.write(line + b"\n")
            if not to_end:
                out.flush()
    out.flush()


def _follow(at: Connection, name: str) -> Iterator[tuple[str, Message]]:
    consumer = Consumer(consumer_settings(at.config, at.bootstrap, scan_group(at.config)))
    topic = at.config.topic(name)
    partitions = partitions_of(consumer, at.config, name)
    try:
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
        while True:
            for message in consumer.consume(1000, 0.2):
                error = message.error()
                if error is None:
                    yield name, message
                elif error.code() != KafkaError._PARTITION_EOF and not error.retriable():
                    raise topic_error(error, f"reading {topic}")
    finally:
        consumer.close()


def _pace(at: Connection, rate: float | None, speedup: float | None, fast: bool) -> Pace:
    if sum((rate is not None, speedup is not None, fast)) > 1:
        raise typer.BadParameter("give one of --rate, --speedup and --as-fast-as-possible")
    return Pace(per_second=rate, speedup=speedup, jump_ms_max=at.config.events.future_bound)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from error
    with opened:
        yield opened


def _produce(stream: str, lines: BinaryIO, pace: Pace, at: Connection) -> None:
    producer = EventProducer(at.config, at.bootstrap)
    refused = blank = 0
    with _progress() as progress:
        task = progress.add_task(stream, total=None, sent=0)
        try:
            for number, raw in enumerate(lines, start=1):
                line = raw.rstrip(b"\r\n")
                if not line:
                    blank += 1
                    continue
                _wait(producer, pace, line)
                if not producer.send(stream, line):
                    refused += 1
                    typer.echo(
                        f"line {number}: refused, {len(line)} bytes are over "
                        f"events.bytes_max = {at.config.events.bytes_max}",
                        err=True,
                    )
                if number % 200 == 0:
                    progress.update(task, sent=producer.sent[stream])
        finally:  # after Ctrl-C, too: what was queued is sent
            producer.flush()
    said = f"{producer.acknowledged[stream]} {stream} sent"
    said += f", {refused} refused" if refused else ""
    said += f", {blank} blank lines skipped" if blank else ""
    typer.echo(said, err=True)
    if refused:
        raise typer.Exit(1)


def _wait(producer: EventProducer, pace: Pace, line: bytes) -> None:
    """Sleep until `line` is due, serving delivery reports meanwhile."""
    wait_s = pace.wait_s(event_time_ms(line))
    while wait_s > 0:
        producer.poll()
        time.sleep(min(wait_s, 0.2))
        wait_s -= 0.2


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}: {task.fields[sent]} sent"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )

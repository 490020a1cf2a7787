"""`python -m trainer`: the trainer of a stack, or of a file of samples.

Exit 0 = stopped as asked or at the end of the input; 1 = failed, the reason is the last line of
stderr; 2 = bad usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType

# The matrix kernels may sum in another order for other alignments of memory; set before they load.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import msgspec
import torch
from prometheus_client import REGISTRY

from embedding_store.errors import StoreError
from embedding_store.store import EmbeddingStore
from settings.config import Config
from settings.load import ConfigError, load_config_at
from settings.logs import configure_logs
from topics.admin import ensure_topics
from topics.disk import DiskSpace
from topics.errors import TopicError
from topics.history import read_old_version
from topics.lag import LagMonitor
from topics.metrics import MetricsServer
from topics.names import SAMPLES, trainer_group
from topics.publisher import Publisher
from topics.scan import Partition
from trainer.basis import adopt, published_vectors
from trainer.bounded import run_bounded
from trainer.checkpointing import Checkpointing
from trainer.commands import KafkaCommands
from trainer.errors import TrainerError
from trainer.feed_process import FeedProcess, kafka_order
from trainer.garbage import collect_rarely
from trainer.loop import Loop
from trainer.models.catalogue import check_model_name
from trainer.opening import open_store
from trainer.source import retry_while_away
from trainer.steering import Steering

_CHECKPOINT_WAIT_SECONDS = 10.0
"""For one under way when asked to stop; what is half-made then is removed at the next start."""


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn every expected failure into one line and an exit code."""
    options = _parse(arguments)
    configure_logs("trainer")
    try:
        config = load_config_at(options.config, options.bootstrap)
        check_model_name(config.model.name)
        _set_up_torch(config)
        if options.samples is not None:
            report = run_bounded(options.samples, config, options.store)
            text = msgspec.json.format(msgspec.json.encode(report), indent=2)
            if options.report is None:
                sys.stdout.buffer.write(text + b"\n")
            else:
                options.report.write_bytes(text + b"\n")
        else:
            _run_stream(config, options)
    except ConfigError as error:
        sys.stderr.write(f"trainer: {error}\n")
        return 2
    except (TrainerError, StoreError, TopicError, OSError) as error:
        sys.stderr.write(f"trainer: {type(error).__name__}: {error}\n")
        return 1
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--store", type=Path, metavar="DIR", help="the embedding store")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="train on samples.jsonl")
    parser.add_argument("--report", type=Path, metavar="FILE", help="with --samples: JSON report")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="the broker")
    parser.add_argument("--metrics-port", type=int, default=0, help="0 = any free port")
    parser.add_argument(
        "--until-end",
        action="store_true",
        help="stop, all published, at the ends that the samples have at the start",
    )
    parser.add_argument(
        "--accept-gap",
        action="store_true",
        help="go on although samples that the store has not seen are gone from the log",
    )
    options = parser.parse_args(arguments)
    if options.samples is None and (options.bootstrap is None or options.store is None):
        parser.error("--bootstrap and --store are needed, or --samples")
    if options.samples is None and options.report is not None:
        parser.error("--report goes with --samples")
    return options


def _set_up_torch(config: Config) -> None:
    torch.set_num_threads(config.trainer.threads)
    if config.trainer.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('trainer.device: expected "cpu", got "cuda": torch finds no GPU here')


def _run_stream(config: Config, options: argparse.Namespace) -> None:
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    bootstrap = options.bootstrap
    with open_store(config, options.store, owner="headwater trainer") as store:
        server = MetricsServer(options.metrics_port, host=config.metrics.host)
        try:
            retry_while_away(
                "looking at the topics", lambda: ensure_topics(config, bootstrap), stop.is_set
            )
            publisher: Publisher = retry_while_away(
                "taking over publication",
                lambda: Publisher(config, bootstrap, f"{config.kafka.topic_prefix}-trainer"),
                stop.is_set,
            )
            _adopt_basis(config, bootstrap, store, stop)
            checkpointing = Checkpointing(config, store)
            commands = KafkaCommands(config, bootstrap, Steering.stored_offset(store))
            loop = Loop(
                config,
                store,
                sink=publisher,
                published=publisher.published,
                commands=commands,
                read_old=partial(read_old_version, config, bootstrap),
                after_commit=checkpointing.after_commit,
            )
            order = kafka_order(
                config,
                bootstrap,
                loop.progress.offsets,
                until_end=options.until_end,
                accept_gap=options.accept_gap,
            )
            source = FeedProcess(order, loop.plan, stop.is_set)

            def positions() -> Mapping[Partition, int]:
                stored = dict(loop.progress.offsets.get(SAMPLES, {}))
                return {(SAMPLES, partition): offset for partition, offset in stored.items()}

            lag = LagMonitor(config, bootstrap, trainer_group(config), [SAMPLES], positions)
            REGISTRY.register(lag)
            REGISTRY.register(DiskSpace("store", options.store))
            collect_rarely()
            try:
                loop.run(source, stop.is_set)
            finally:
                checkpointing.wait(_CHECKPOINT_WAIT_SECONDS)
                lag.close()
                commands.close()
                source.close()
                publisher.close()
        finally:
            server.close()


def _adopt_basis(
    config: Config, bootstrap: str, store: EmbeddingStore, stop: threading.Event
) -> None:
    """Begin in the basis of another stack's vectors, where the config names one."""
    publish = config.publish
    if publish.basis != "anchored" or not publish.basis_from or store.commit_id > 0:
        return
    kafka = config.kafka.model_copy(update={"topic_prefix": publish.basis_from})
    other = config.model_copy(update={"kafka": kafka})
    adopt(
        store,
        retry_while_away(
            f"reading the vectors of {publish.basis_from}",
            lambda: published_vectors(other, bootstrap),
            stop.is_set,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())

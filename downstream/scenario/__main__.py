"""`python -m downstream.scenario`: an example downstream trainer in a process of its own.

It serves one scenario's impressions as they come, with vectors from the representation topics,
learns from the final samples, and prints its progressive figures as one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import structlog
import torch

from downstream.pretrained import load_mix_tower
from downstream.published import KINDS_READ, Reads
from downstream.reader import RepresentationReader
from downstream.scenario.fields import Fields
from downstream.scenario.learner import ScenarioLearner
from downstream.scenario.model import READS, TRANSFERS, Shape, scenario_model
from downstream.scenario.stream import ScenarioStream
from downstream.transfer import TransferName
from settings.load import ConfigError, load_config
from settings.logs import configure_logs
from topics.errors import TopicError
from topics.names import Kind

_log = structlog.get_logger()
_WIDTH_WAIT_SECONDS = 120.0


def main() -> int:
    """0 = ran its time or was stopped, 1 = failed, 2 = bad usage."""
    arguments = _arguments()
    configure_logs("scenario")
    try:
        config = load_config(arguments.config).config
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    task = arguments.task or config.tasks[0]
    if task not in config.tasks:
        sys.stderr.write(f"--task: expected one of {', '.join(config.tasks)}, got {task}\n")
        return 2
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    bootstrap = arguments.bootstrap or config.kafka.bootstrap
    try:
        transfer: TransferName = arguments.transfer
        reads: Reads = arguments.reads or READS[transfer]
        tower = None if arguments.pretrained is None else load_mix_tower(arguments.pretrained)
        with RepresentationReader(config, bootstrap, tuple(set(KINDS_READ[reads]))) as reader:
            dims = [_published_width(reader, kind, stopping) for kind in KINDS_READ[reads]]
            fields = Fields(config)
            shape = Shape(len(fields), fields.buckets)
            place = config.tasks.index(task)
            model = scenario_model(
                transfer, shape, dims, tower=tower, frozen=arguments.frozen, task=place
            )
            learner = ScenarioLearner(model, fields, reader, reads=reads, dims=dims, task=task)
            stream = ScenarioStream(config, bootstrap, learner, domain=arguments.domain, task=task)
            _log.info("scenario_ready", transfer=transfer, reads=reads, dims=dims)
            ends = time.monotonic() + (arguments.seconds or float("inf"))
            stream.run(lambda: stopping.is_set() or time.monotonic() > ends)
            stream.close()
    except (TopicError, TimeoutError, ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    report = {"domain": arguments.domain, "task": task, "transfer": arguments.transfer}
    sys.stdout.write(json.dumps(report | asdict(learner.report())) + "\n")
    return 0


def _published_width(reader: RepresentationReader, kind: Kind, stopping: threading.Event) -> int:
    """D of the vectors of `kind`, waiting for the first version."""
    ends = time.monotonic() + _WIDTH_WAIT_SECONDS
    while not stopping.is_set() and time.monotonic() < ends:
        width = int(reader.take(kind, []).vectors.shape[1])
        if width:
            return width
        stopping.wait(0.2)
    raise TimeoutError(f"no {kind} vector was published in {_WIDTH_WAIT_SECONDS:g} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m downstream.scenario", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file; the defaults without it")
    parser.add_argument("--bootstrap", default="", help="host:port; else kafka.bootstrap's")
    parser.add_argument("--domain", default="", help="serve this domain only; default all")
    parser.add_argument("--task", default="", help="conversion kind to predict; default the first")
    parser.add_argument("--transfer", choices=TRANSFERS, default="adapter")
    parser.add_argument(
        "--reads", choices=tuple(KINDS_READ), help="vectors; default what --transfer is made for"
    )
    parser.add_argument(
        "--pretrained", type=Path, metavar="DIR", help="iim: of `headwater export DIR --weights`"
    )
    parser.add_argument("--frozen", action="store_true", help="iim: the upstream's layers stay")
    parser.add_argument("--seconds", type=float, default=0, help="0 = until SIGTERM")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""`python -m trainer.analysis collapse|entanglement|correlation`: of a store or a checkpoint.

Prints JSON. Exit 1 = failed, the reason is the last line of stderr; 2 = bad usage.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from embedding_store.errors import StoreError, StoreLocked
from embedding_store.reading import StoreReader
from settings.load import ConfigError, load_config
from topics.errors import TopicError
from trainer.analysis.collapse import collapse
from trainer.analysis.correlated import correlated
from trainer.analysis.entangled import entangled

OWNER = "headwater analyse"


def main(arguments: list[str] | None = None) -> int:
    """Parse, analyse, print; every expected failure is one line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.analysis", description=__doc__)
    parser.add_argument("tool", choices=("collapse", "entanglement", "correlation"))
    parser.add_argument("--store", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--samples", type=Path, metavar="FILE")
    parser.add_argument("--single", action="append", default=[], metavar="TASK=DIR")
    parser.add_argument("--png", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        report = _analyse(options)
    except ConfigError as error:
        sys.stderr.write(f"analyse: {error}\n")
        return 2
    except (StoreError, TopicError, OSError) as error:
        live = "; a live store cannot be read: ask its newest checkpoint, --checkpoint latest"
        hint = live if isinstance(error, StoreLocked) else ""
        sys.stderr.write(f"analyse: {error}{hint}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return 0


def _analyse(options: argparse.Namespace) -> dict[str, Any]:
    config = None if options.config is None else load_config(options.config).config
    with ExitStack() as opened:
        reader = opened.enter_context(StoreReader(options.store, OWNER))
        if options.tool == "collapse":
            if options.samples is not None and config is None:
                raise ConfigError("--samples needs --config: the store's own config")
            report = collapse(reader, config, options.samples)
            if options.png is not None:
                from trainer.analysis.plots import plot_collapse

                plot_collapse(report, options.png)
            return report
        if config is None:
            raise ConfigError(f"{options.tool} needs --config: the store's own config")
        if options.tool == "entanglement":
            singles = {}
            for given in options.single:
                task, _, folder = given.partition("=")
                if task not in config.tasks or not folder:
                    known = ", ".join(config.tasks)
                    raise ConfigError(f"--single: expected TASK=DIR of {known}, got {given!r}")
                singles[task] = opened.enter_context(StoreReader(Path(folder), OWNER))
            report, points = entangled(reader, singles, config.tasks)
            if options.png is not None:
                from trainer.analysis.plots import plot_entanglement

                plot_entanglement(report, points, options.png)
            return report
        if options.samples is None:
            raise ConfigError("correlation needs --samples: samples.jsonl with final samples")
        report = correlated(reader, config, options.samples)
        if options.png is not None:
            from trainer.analysis.plots import plot_correlation

            plot_correlation(report, options.png)
        return report


if __name__ == "__main__":
    sys.exit(main())

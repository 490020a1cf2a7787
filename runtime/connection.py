"""From `--dir`, `--bootstrap` and `--config` to a config and a broker to talk to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from runtime.broker import BrokerError, cluster_id_at
from runtime.run_state import require_run
from settings.config import Config
from settings.credentials import resolved
from settings.load import load_config, load_config_at

DEFAULT_DIR = Path(".headwater")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the topics are and how they are laid out. `cluster_id` was asserted."""

    config: Config
    bootstrap: str
    cluster_id: str


def connect(directory: Path, bootstrap: str | None, config_file: Path | None) -> Connection:
    """The stack of `directory`, or with `bootstrap` any broker, laid out as `config_file` says.

    Raises NoStack, ConfigError, and BrokerError when nobody answers or another cluster does.
    """
    if bootstrap is None and config_file is not None:
        bootstrap = load_config(config_file).config.kafka.bootstrap or None
    if bootstrap is not None:
        config = load_config_at(config_file, bootstrap)
        found = cluster_id_at(bootstrap, timeout_s=10, **resolved(config.kafka.extra))
        if found is None:
            raise BrokerError(f"no Kafka broker answers at {bootstrap}")
        return Connection(config, bootstrap, found)
    run = require_run(directory)
    config = load_config(config_file or Path(run.config)).config
    found = cluster_id_at(run.bootstrap, timeout_s=10, **resolved(config.kafka.extra))
    if found is None:
        raise BrokerError(f"the stack's broker does not answer at {run.bootstrap}")
    if found != run.cluster_id:
        raise BrokerError(
            f"{run.bootstrap} answers as Kafka cluster {found!r}, the stack's is "
            f"{run.cluster_id!r}: nothing was written"
        )
    return Connection(config, run.bootstrap, found)


DIR_OPTION = typer.Option(DEFAULT_DIR, "--dir", help="The stack's directory.")
BOOTSTRAP_OPTION = typer.Option(
    None, "--bootstrap", help="host:port of a broker of your own, instead of --dir's stack."
)
CONFIG_OPTION = typer.Option(
    None, "--config", help="The config (TOML); with --dir the running stack's is known."
)

"""`headwater`: one verb per job. Exit codes: 0 done, 1 failed, 2 called wrongly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version

import typer

from embedding_store.errors import StoreError
from runtime.bounded_join import JoinVerbFailed
from runtime.broker import BrokerError
from runtime.jars import ToolMissing, not_installed
from runtime.replaying import ReplayExists
from runtime.run_state import NoStack, StackRunning
from runtime.sources.catalog import SourceError
from runtime.supervisor import StackFailed
from runtime.verbs import (
    acls,
    analyse,
    audit,
    batch,
    bench,
    checkpoints,
    config,
    demo,
    doctor,
    events,
    export,
    models,
    publication,
    replay,
    reprocess,
    savepoint,
    simulated,
    stack,
    status,
    store,
    store_migrate,
    study,
    transfer,
)
from settings.load import ConfigError
from settings.logs import configure_logs
from stream.errors import JoinError
from topics.errors import TopicError

_FAILED = (
    BrokerError,
    JoinVerbFailed,
    ToolMissing,
    NoStack,
    StackRunning,
    StackFailed,
    TopicError,
    StoreError,
    OSError,
    bench.BenchmarkFailed,
    JoinError,
    ReplayExists,
)
_CALLED_WRONGLY = (ConfigError, SourceError)

app = typer.Typer(
    name="headwater",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS: tuple[Callable[..., None], ...] = (
    stack.up,
    stack.down,
    status.status,
    doctor.doctor,
    simulated.simulate,
    acls.acls,
    events.produce,
    events.consume,
    demo.demo,
    batch.join,
    batch.train,
    models.models,
    audit.audit,
    export.export,
    reprocess.reprocess,
    replay.replay,
    replay.compare,
    replay.switch,
    publication.rollback,
    publication.refresh,
    savepoint.savepoint,
    savepoint.submit,
    bench.bench,
    analyse.analyse,
    study.study,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"headwater {version('headwater')}")
        raise typer.Exit


@app.callback()
def _headwater(
    _version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_show_version, help="Print it and end."
    ),
) -> None:
    """Streaming incremental learning for ads: from one event to a published, versioned vector."""


for _verb in _VERBS:
    app.command(_verb.__name__)(_verb)
app.add_typer(config.app, name="config")
app.add_typer(publication.forget_app, name="forget")
app.add_typer(transfer.app, name="transfer")
for _verb in (checkpoints.checkpoints, checkpoints.verify, checkpoints.restore):
    store.store_app.command(_verb.__name__)(_verb)
store.store_app.command()(store_migrate.migrate)
app.add_typer(store.store_app, name="store")


def main() -> None:
    """Run one verb; every expected error is one clear line on stderr."""
    configure_logs()
    try:
        app()
    except BrokenPipeError:  # `headwater consume … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except _CALLED_WRONGLY as error:
        _say(error)
        sys.exit(2)
    except _FAILED as error:
        _say(error)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (said := not_installed(error.name or "")) is None:
            raise
        _say(ToolMissing(said))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _say(error: BaseException) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:  # as the system made it
        name = error.filename2 or error.filename
        text = f"{name}: {error.strerror}; give a path that this user may read or write"
    for line in text.splitlines():
        print(f"headwater: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()

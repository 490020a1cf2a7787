"""`store checkpoints`, `store verify`, `store restore`: what to do about a damaged store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import orjson
import typer

from embedding_store.errors import StoreError, StoreLocked, StoreUnreadable
from runtime.connection import DIR_OPTION
from runtime.rendering import utc_time
from settings.load import ConfigError, load_config

STORE_OPTION = typer.Option(None, "--store", help="The store's directory; else that of --dir.")
FROM_OPTION = typer.Option(
    None, "--from", help="A directory of checkpoints, or of copies; else the config's directory."
)


def checkpoints(
    directory: Path = DIR_OPTION,
    store: Path = STORE_OPTION,
    source: Path = FROM_OPTION,
    as_json: bool = typer.Option(False, "--json", help="A list, newest first."),
) -> None:
    """List the checkpoints, newest first. Reads their lists only; `store verify` reads the rest."""
    from embedding_store.checkpoints import list_checkpoints

    place = checkpoint_directory(directory, store, source)
    found = list_checkpoints(place)
    if as_json:
        rows = [
            {
                "path": str(c.path),
                "commit_id": c.commit_id,
                "created_ms": c.created_ms,
                "bytes": c.bytes,
                "files": len(c.files),
                "about": c.about,
                "damaged": c.damaged,
            }
            for c in found
        ]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    if not found:
        typer.echo(f"no checkpoint in {place}")
    for c in found:
        if c.damaged:
            typer.echo(f"{c.path.name}  DAMAGED: {c.damaged}")
            continue
        version = c.about.get("version", "?")
        typer.echo(
            f"{c.path.name}  {utc_time(c.created_ms)}  commit {c.commit_id}  version {version}  "
            f"{c.bytes / 1e6:.1f} MB in {len(c.files)} files"
        )


def verify(
    directory: Path = DIR_OPTION,
    store: Path = STORE_OPTION,
    files_only: bool = typer.Option(False, "--files-only", help="Do not read the rows as rows."),
    as_json: bool = typer.Option(False, "--json", help="What was read and every fault."),
) -> None:
    """Read a store, or one checkpoint, to the last bit; name damaged files and the keys in them.

    Exit 1 if anything is damaged. Of a running stack, give a checkpoint as --store.
    """
    from embedding_store.owner import OwnerLock
    from embedding_store.restore import open_and_verify
    from embedding_store.verify import CHECKPOINT_FILE, verify_files

    place = _store(directory, store)
    is_checkpoint = (place / CHECKPOINT_FILE).exists()
    try:
        lock = None if is_checkpoint else OwnerLock(place, "headwater store verify")
    except StoreLocked as error:
        raise StoreError(
            f"{error}; of a live store verify a checkpoint: `headwater store checkpoints` lists "
            f"them, --store {checkpoint_directory(directory, store, None)}/NAME reads one"
        ) from None
    try:
        found = verify_files(place)
    finally:
        if lock is not None:
            lock.release()
    rows = None
    if not (found.faults or is_checkpoint or files_only):
        rows = open_and_verify(place)
    if as_json:
        report: dict[str, Any] = msgspec.to_builtins(found) | {"rows": rows}
        typer.echo(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    else:
        for fault in found.faults:
            typer.echo(f"DAMAGED {fault}")
        for line in found.unchecked:
            typer.echo(f"unchecked {line}")
        counted = "" if rows is None else f", {rows} rows"
        state = f"{len(found.faults)} damaged" if found.faults else "good"
        typer.echo(f"{place}: {state}; {found.files} files, {found.bytes / 1e6:.1f} MB{counted}")
    if found.faults:
        raise typer.Exit(1)


def restore(
    directory: Path = DIR_OPTION,
    store: Path = STORE_OPTION,
    source: Path = FROM_OPTION,
    drill: bool = typer.Option(False, "--drill", help="Only try it; the store stays as it is."),
    as_json: bool = typer.Option(False, "--json", help="What was taken, passed over and lost."),
) -> None:
    """Put the newest good checkpoint in the store's place; a damaged one is named and passed over.

    The store that was there is moved aside. The trainer then reads on from the checkpoint's own
    offsets and relearns what is missing, as long as Kafka still has it.
    """
    from embedding_store.restore import restore as restored

    found = restored(
        checkpoint_directory(directory, store, source),
        _store(directory, store, must_exist=False),
        drill=drill,
    )
    if as_json:
        typer.echo(orjson.dumps(msgspec.to_builtins(found), option=orjson.OPT_INDENT_2).decode())
        return
    for passed in found.skipped:
        typer.echo(f"passed over {passed.checkpoint}")
        for reason in passed.reasons:
            typer.echo(f"  {reason}")
    typer.echo(f"took {found.checkpoint}")
    typer.echo(
        f"  commit {found.commit_id} of {utc_time(found.created_ms)}, {found.rows} rows, "
        f"opened and verified in {found.seconds:.1f} s"
    )
    for topic, offsets in found.about.get("offsets", {}).items():
        told = ", ".join(f"partition {p} at {offset}" for p, offset in offsets.items())
        typer.echo(f"  reads on from {topic}: {told}")
    if found.commits_lost:
        typer.echo(f"  to be relearnt: at least {found.commits_lost} commits")
    if drill:
        typer.echo("a drill: nothing was changed")
    else:
        typer.echo(f"restored to {found.store}")
        if found.replaced:
            typer.echo(f"the old store is in {found.replaced}")


def _store(directory: Path, store: Path | None, *, must_exist: bool = True) -> Path:
    place = store if store is not None else directory / "store"
    if must_exist and not place.is_dir():
        raise StoreUnreadable(f"no store here: path=`{place}`")
    return place.absolute()


def checkpoint_directory(directory: Path, store: Path | None, source: Path | None) -> Path:
    """--from, else what the stack's config says, else beside the store."""
    if source is not None:
        if not source.is_dir():
            raise ConfigError(f"--from {source}: expected a directory of checkpoints")
        return source.absolute()
    place = _store(directory, store, must_exist=False)
    config = directory / "config.toml"
    if store is None and config.is_file():
        given = load_config(config).config.checkpoints.directory
        if given:
            return Path(given).absolute()
    return place.with_name(f"{place.name}.checkpoints")

"""`store stats|get|scan|export|expire`: what is in a store, without opening it for writing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import typer

from embedding_store.errors import StoreError, StoreLocked, StoreUnreadable
from runtime.choices import chosen
from runtime.connection import DIR_OPTION
from runtime.verbs.checkpoints import checkpoint_directory
from settings.config import Config
from settings.load import load_config

if TYPE_CHECKING:
    from embedding_store.reading import StoreReader

store_app = typer.Typer(
    help="Look into a store: the store of a stopped stack, or a checkpoint of a running one.",
    no_args_is_help=True,
)
STORE_OPTION = typer.Option(None, "--store", help="The store's directory; else that of --dir.")
CHECKPOINT_OPTION = typer.Option(
    None, "--checkpoint", help="latest, or a checkpoint's directory: works beside a live trainer."
)
JSON_OPTION = typer.Option(False, "--json", help="Everything, as JSON.")
SLOT_OPTION = typer.Option(None, "--slot", help="Only rows of this slot.")
BEFORE_OPTION = typer.Option(
    None, "--touched-before", help="Only rows last touched at this time (UTC, ISO 8601) or before."
)
AFTER_OPTION = typer.Option(None, "--touched-after", help="Likewise, or after.")
COUNT_MIN_OPTION = typer.Option(None, "--count-min", help="Only rows learnt from so often.")
COUNT_MAX_OPTION = typer.Option(None, "--count-max", help="Only rows learnt from at most so often.")


@store_app.command()
def stats(
    directory: Path = DIR_OPTION,
    store: Path = STORE_OPTION,
    checkpoint: str = CHECKPOINT_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Rows, occurrences and ages by slot; sets; durable state by space. Reads every row."""
    from embedding_store.inspection import statistics

    with store_reader(directory, store, checkpoint) as reader:
        found = statistics(reader)
    if as_json:
        _print(found)
        return
    typer.echo(
        f"{found['path']}: commit {found['commit_id']}, {found['rows']} rows of "
        f"{found['row_bytes']} bytes, {found['disk_bytes'] / 1e6:.1f} MB on disk"
    )
    for name, shape in found["sets"].items():
        typer.echo(f"  set {name}: {shape['dim']} x {shape['dtype']}, {shape['optimizer']}")
    for name, slot in found["slots"].items():
        typer.echo(
            f"  {name or '(unnamed)':<24} {slot['rows']:>10} rows  "
            f"{slot['occurrences']:>12} occurrences  last touched "
            f"{_utc(slot['oldest_touched_s'])} to {_utc(slot['newest_touched_s'])}"
        )
    for space, of in found["state"].items():
        typer.echo(f"  state {space:<18} {of['records']:>10} records  {of['bytes']:>12} bytes")


@store_app.command()
def get(
    directory: Path = DIR_OPTION,
    store: Path = STORE_OPTION,
    checkpoint: str = CHECKPOINT_OPTION,
    slot: str = typer.Option(None, "--slot", help="With --value: the slot's name."),
    value: str = typer.Option(None, "--value", help="With --slot: the value, as in the events."),
    key: str = typer.Option(None, "--key", help="The row's key instead: 0x..., or decimal."),
    as_json: bool = JSON_OPTION,
) -> None:
    """One row: header and vectors. Exit 1 if there is none."""
    import numpy as np

    from embedding_store.inspection import describe
    from embedding_store.keys import row_key

    if (key is None) == (slot is None or value is None):
        raise typer.BadParameter("expected --slot and --value, or --key")
    with store_reader(directory, store, checkpoint) as reader:
        if key is None:
            chosen(slot, list(reader.layout.slots), "slot")
            number = row_key(slot, value)
        else:
            number = _key(key)
        records, found = reader.rows(np.array([number], np.uint64))
        told = list(describe(reader, records, vectors=True))
    if not found.all():
        named = f"key {number:#018x}" if key is not None else f"{slot} {value!r} ({number:#018x})"
        raise StoreUnreadable(f"no row of {named} in {reader.path}")
    if as_json:
        _print(told[0])
    else:
        _tell(told[0])


@store_app.command()
def scan(
    directory: Path = DIR_OPTION,
    store: Path = STORE_OPTION,
    checkpoint: str = CHECKPOINT_OPTION,
    slot: str = SLOT_OPTION,
    touched_before: str = BEFORE_OPTION,
    touched_after: str = AFTER_OPTION,
    count_min: int = COUNT_MIN_OPTION,
    count_max: int = COUNT_MAX_OPTION,
    limit: int = typer.Option(20, "--limit", min=1, help="At most so many rows."),
    vectors: bool = typer.Option(False, "--vectors", help="With their vectors."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object per line."),
) -> None:
    """Rows in order of key that pass every filter."""
    from embedding_store import inspection

    with store_reader(directory, store, checkpoint) as reader:
        wanted = _filter(reader, slot, (touched_before, touched_after), (count_min, count_max))
        for row in inspection.scan(reader, wanted, limit=limit, vectors=vectors):
            if as_json:
                typer.echo(orjson.dumps(row).decode())
            else:
                _tell(row)


@store_app.command("export")
def export_rows(
    directory: Path = DIR_OPTION,
    store: Path = STORE_OPTION,
    checkpoint: str = CHECKPOINT_OPTION,
    parquet: Path = typer.Option(..., "--parquet", help="The file to write."),
    slot: str = SLOT_OPTION,
    touched_before: str = BEFORE_OPTION,
    touched_after: str = AFTER_OPTION,
    count_min: int = COUNT_MIN_OPTION,
    count_max: int = COUNT_MAX_OPTION,
    as_json: bool = typer.Option(False, "--json", help="{file, rows, bytes, seconds}."),
) -> None:
    """Every row as Parquet: header columns, and a list of fixed size per embedding set."""
    from embedding_store.inspection import export_parquet

    if not parquet.absolute().parent.is_dir() or parquet.is_dir():
        raise typer.BadParameter(f"--parquet {parquet}: expected a file in a directory that exists")
    started = time.perf_counter()
    with store_reader(directory, store, checkpoint) as reader:
        wanted = _filter(reader, slot, (touched_before, touched_after), (count_min, count_max))
        rows = export_parquet(reader, parquet, wanted)
    found = {
        "file": str(parquet),
        "rows": rows,
        "bytes": parquet.stat().st_size,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if as_json:
        _print(found)
    else:
        typer.echo(f"{rows} rows, {found['bytes']} bytes, written to {parquet}")


@store_app.command()
def expire(
    directory: Path = DIR_OPTION,
    store: Path = STORE_OPTION,
    checkpoint: str = CHECKPOINT_OPTION,
    config_file: Path = typer.Option(
        None, "--config", help="The config with the [expiry] to try; else the stack's."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would go; nothing does."),
    as_json: bool = JSON_OPTION,
) -> None:
    """What [expiry] would delete now, by slot and reason. The trainer alone deletes."""
    from embedding_store.expiry import Sweep
    from embedding_store.policies import expiry_policy

    if not dry_run:
        raise typer.BadParameter(
            "give --dry-run: rows are deleted by the running trainer (section [expiry] of its "
            "config), which also publishes the tombstones"
        )
    policy = expiry_policy(_config(directory, config_file).expiry)
    if policy is None:
        raise typer.BadParameter(
            "the config's [expiry] deletes nothing: set ttl, rows_max or score_min, there or in "
            "[expiry.slots.NAME]"
        )
    with store_reader(directory, store, checkpoint) as reader:
        now_s = _newest_event_s(reader)
        sweep = Sweep(policy, reader.layout, reader.form.bytes, now_s, dry_run=True)
        while not sweep.finished:
            sweep.step(reader, 100_000)
    found = sweep.found
    slots = {
        name: {
            "rows": of.rows,
            **{reason: getattr(of, reason) for reason in ("ttl", "score", "rows_max")},
            "oldest_touched_s": of.oldest_touched_s,
        }
        for name, of in sorted(found.by_slot.items())
    }
    report = {
        "dry_run": True,
        "now_s": now_s,
        "examined": found.examined,
        "rows": found.rows,
        "bytes": found.bytes,
        "by_slot": slots,
    }
    if as_json:
        _print(report)
        return
    typer.echo(
        f"as of {_utc(now_s)}, the newest event: {found.rows} of {found.examined} rows would go, "
        f"{found.bytes / 1e6:.1f} MB"
    )
    for name, of in slots.items():
        reasons = ", ".join(f"{of[r]} by {r}" for r in ("ttl", "score", "rows_max") if of[r])
        oldest = _utc(of["oldest_touched_s"] or 0)
        typer.echo(
            f"  {name or '(unnamed)':<24} {of['rows']:>10} rows ({reasons}), oldest {oldest}"
        )


@contextmanager
def store_reader(
    directory: Path, store: Path | None, checkpoint: str | None
) -> Iterator[StoreReader]:
    """The store or checkpoint that the options name, open for reading."""
    from embedding_store.reading import StoreReader

    place = (store if store is not None else directory / "store").absolute()
    if checkpoint is not None:
        place = named_checkpoint(directory, store, checkpoint)
    try:
        reader = StoreReader(place, "headwater store")
    except StoreLocked as error:
        raise StoreError(
            f"{error}; a live store cannot be read: ask its newest checkpoint, --checkpoint latest"
        ) from None
    with reader:
        yield reader


def named_checkpoint(directory: Path, store: Path | None, which: str) -> Path:
    """`which` is a checkpoint's directory, or `latest`. Raises StoreUnreadable if there is none."""
    from embedding_store.checkpoints import list_checkpoints

    if which != "latest":
        return Path(which).absolute()
    folder = checkpoint_directory(directory, store, None)
    for found in list_checkpoints(folder):
        if not found.damaged:
            return found.path
    raise StoreUnreadable(f"no checkpoint that can be read in {folder}")


def _config(directory: Path, config_file: Path | None) -> Config:
    stack = directory / "config.toml"
    return load_config(config_file or (stack if stack.is_file() else None)).config


def _filter(
    reader: StoreReader,
    slot: str | None,
    touched: tuple[str | None, str | None],
    counts: tuple[int | None, int | None],
) -> Any:
    from embedding_store.inspection import RowFilter

    if slot is not None:
        chosen(slot, list(reader.layout.slots), "slot")
    return RowFilter(
        slot=slot,
        touched_before_s=_seconds(touched[0], "--touched-before"),
        touched_after_s=_seconds(touched[1], "--touched-after"),
        count_min=counts[0],
        count_max=counts[1],
    )


def _seconds(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{option} {text!r}: expected a time such as 2026-01-31 or 2026-01-31T08:00:00"
        ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def _key(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = 0
    if not 0 < number < 2**64:
        raise typer.BadParameter(f"--key {text!r}: expected 64 bits such as 0x1f or 31, not 0")
    return number


def _newest_event_s(reader: StoreReader) -> int:
    """The trainer's clock as of the commit: expiry goes by the time of events."""
    for space, name, value in reader.state():
        if space == "trainer" and name == b"progress":
            return int(orjson.loads(value)["now_ms"]) // 1000
    return max((int(r["last_touched_s"].max()) for r in reader.records()), default=0)


def _tell(row: Mapping[str, Any]) -> None:
    typer.echo(
        f"{row['key']}  {row['slot'] or '(unnamed)'}  count {row['count']}  created "
        f"{_utc(row['created_s'])}  last touched {_utc(row['last_touched_s'])}"
    )
    for name, vector in row.get("sets", {}).items():
        typer.echo(f"  {name}: " + " ".join(f"{x:.5g}" for x in vector))


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _print(found: Mapping[str, Any]) -> None:
    typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())

"""`export`."""

from __future__ import annotations

from pathlib import Path

import orjson
import typer

from embedding_store.errors import StoreUnreadable
from runtime.choices import expect_file_in_a_directory
from runtime.connection import BOOTSTRAP_OPTION, CONFIG_OPTION, DIR_OPTION, connect
from runtime.verbs.store import store_reader
from topics.names import KINDS, Kind

_SUFFIXES = (".parquet", ".safetensors")


def export(
    out: Path = typer.Argument(
        ..., help="FILE.parquet or FILE.safetensors for one kind; another name: a directory of all."
    ),
    kind: str = typer.Option("", "--kind", help=f"One of {', '.join(KINDS)}; for a single file."),
    weights: bool = typer.Option(
        False,
        "--weights",
        help="Into a directory: the mix tower, too, for a warm start.",
    ),
    store: Path = typer.Option(None, "--store", help="--weights: the store; else that of --dir."),
    checkpoint: str = typer.Option(
        None, "--checkpoint", help="--weights: latest, or a directory; works beside a live trainer."
    ),
    directory: Path = DIR_OPTION,
    bootstrap: str = BOOTSTRAP_OPTION,
    config_file: Path = CONFIG_OPTION,
    as_json: bool = typer.Option(False, "--json", help="What was written, as JSON."),
) -> None:
    """Write the newest whole version of the representations to files."""
    from downstream.export import (  # polars loads slowly
        export_vectors,
        save_pretrained,
        write_parquet,
        write_safetensors,
    )
    from downstream.reader import RepresentationReader

    is_file = out.suffix in _SUFFIXES
    if is_file and kind not in KINDS:
        raise typer.BadParameter(
            f"--kind: expected one of {', '.join(KINDS)} for a single file, got {kind or 'nothing'}"
        )
    if is_file:
        expect_file_in_a_directory(out, str(out))
    if not is_file and out.suffix:
        raise typer.BadParameter(
            f"expected {' or '.join(_SUFFIXES)} or a directory, got {out.name}"
        )
    if weights and (is_file or kind):
        raise typer.BadParameter("--weights goes with a directory of all kinds")
    wanted: tuple[Kind, ...] = tuple(k for k in KINDS if not kind or k == kind)
    at = connect(directory, bootstrap, config_file)
    with RepresentationReader(at.config, at.bootstrap, wanted) as reader:
        exported = [export_vectors(reader, one) for one in wanted]
    if out.suffix == ".parquet":
        write_parquet(exported[0], out)
    elif out.suffix == ".safetensors":
        write_safetensors(exported[0], out)
    else:
        save_pretrained(exported, out)
    if weights:
        _save_weights(out, directory, store, checkpoint)
    written = {one.kind: {"rows": len(one.ids), "version": one.version} for one in exported}
    if as_json:
        typer.echo(orjson.dumps({"out": str(out), "written": written}))
        return
    for name, counts in written.items():
        typer.echo(f"{name}: {counts['rows']} vectors of version {counts['version']} -> {out}")


def _save_weights(out: Path, directory: Path, store: Path | None, checkpoint: str | None) -> None:
    from downstream.pretrained import mix_tower, rotations, save_mix_tower  # torch loads slowly

    with store_reader(directory, store, checkpoint) as reader:
        wanted = {("trainer", b"dense"), ("trainer", b"progress")}
        wanted |= {("basis", side) for side in (b"user", b"item")}
        state = {(s, k): value for s, k, value in reader.state() if (s, k) in wanted}
    if ("trainer", b"dense") not in state:
        raise StoreUnreadable("the store holds no trained weights yet")
    version = int(orjson.loads(state["trainer", b"progress"])["version"])
    turned = {side: state.get(("basis", side.encode())) for side in ("user", "item")}
    tower = mix_tower(state["trainer", b"dense"], version, rotations(turned))
    typer.echo(f"weights of version {version} -> {save_mix_tower(tower, out)}", err=True)

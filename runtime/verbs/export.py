"""`export`."""

from __future__ import annotations

from pathlib import Path

import orjson
import typer

from runtime.connection import BOOTSTRAP_OPTION, CONFIG_OPTION, DIR_OPTION, connect
from topics.names import KINDS, Kind

_SUFFIXES = (".parquet", ".safetensors")


def export(
    out: Path = typer.Argument(
        ..., help="FILE.parquet or FILE.safetensors for one kind; another name: a directory of all."
    ),
    kind: str = typer.Option("", "--kind", help=f"One of {', '.join(KINDS)}; for a single file."),
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
    if not is_file and out.suffix:
        raise typer.BadParameter(
            f"expected {' or '.join(_SUFFIXES)} or a directory, got {out.name}"
        )
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
    written = {one.kind: {"rows": len(one.ids), "version": one.version} for one in exported}
    if as_json:
        typer.echo(orjson.dumps({"out": str(out), "written": written}))
        return
    for name, counts in written.items():
        typer.echo(f"{name}: {counts['rows']} vectors of version {counts['version']} -> {out}")

"""A version of the representations as files that other tools read: Parquet and safetensors.

    Parquet       columns id: string, vector: fixed-size list of float32, version: int64,
                  event_ms: int64; one row per entity, in order of id
    safetensors   tensors vectors: float32 [N, D], versions and event_ms: int64 [N],
                  id_bytes: uint8 (ids in UTF-8, end to end), id_ends: int64 [N]; metadata: kind,
                  version, schema
    a directory   config.json (version, kinds, widths, wire schema) and one <kind>.safetensors each:
                  `from_pretrained(directory)` reads it back

A file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from downstream.reader import RepresentationReader
from topics.errors import RecordInvalid
from topics.names import KINDS, Kind
from topics.representation import SCHEMA

CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class ExportedVectors:
    """Every entity of one kind as of one version, in order of id."""

    kind: Kind
    version: int
    ids: list[str]
    vectors: NDArray[np.float32]
    """`[N, D]`"""
    versions: NDArray[np.int64]
    """`[N]`, the version that each vector was published with"""
    event_ms: NDArray[np.int64]
    """`[N]`, newest event in each vector"""


def export_vectors(reader: RepresentationReader, kind: Kind) -> ExportedVectors:
    """What the reader holds of `kind` now; version -1 and no rows before the first version."""
    version = reader.version
    ids, taken = reader.everything(kind)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return ExportedVectors(
        kind,
        -1 if version is None else version,
        [ids[n] for n in order],
        taken.vectors[order],
        taken.version[order],
        taken.event_ms[order],
    )


def write_parquet(exported: ExportedVectors, path: Path) -> None:
    """One Parquet file; polars, DuckDB and Spark read it as it is."""
    width = exported.vectors.shape[1]
    frame = pl.DataFrame(
        {
            "id": pl.Series(exported.ids, dtype=pl.String),
            "vector": pl.Series(exported.vectors, dtype=pl.Array(pl.Float32, width)),
            "version": exported.versions,
            "event_ms": exported.event_ms,
        }
    )
    with _appearing(path) as building:
        frame.write_parquet(building)


def write_safetensors(exported: ExportedVectors, path: Path) -> None:
    """One safetensors file; nothing in it is executable."""
    encoded = [entity_id.encode() for entity_id in exported.ids]
    ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)
    tensors: dict[str, NDArray[Any]] = {
        "vectors": np.ascontiguousarray(exported.vectors),
        "versions": exported.versions,
        "event_ms": exported.event_ms,
        "id_bytes": np.frombuffer(b"".join(encoded), np.uint8),
        "id_ends": ends,
    }
    metadata = {
        "kind": exported.kind,
        "version": str(exported.version),
        "schema": str(SCHEMA),
    }
    with _appearing(path) as building:
        building.write_bytes(save(tensors, metadata))  # its own save_file makes it mode 0600


def read_safetensors(path: Path) -> ExportedVectors:
    """What `write_safetensors` wrote; raises RecordInvalid for anything else."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RecordInvalid(f"not an export of representations: {path}: {error}") from error
    kind = metadata.get("kind")
    if metadata.get("schema") != str(SCHEMA) or kind not in KINDS:
        raise RecordInvalid(
            f"expected an export with schema={SCHEMA} and a kind of {', '.join(KINDS)}, "
            f"got schema={metadata.get('schema')} kind={kind}: {path}"
        )
    raw, ends = tensors["id_bytes"].tobytes(), tensors["id_ends"].tolist()
    return ExportedVectors(
        kind,
        int(metadata["version"]),
        [raw[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)],
        tensors["vectors"],
        tensors["versions"],
        tensors["event_ms"],
    )


def save_pretrained(exported: Sequence[ExportedVectors], directory: Path) -> None:
    """The layout that `from_pretrained` reads; `config.json` is written last."""
    directory.mkdir(parents=True, exist_ok=True)
    for one in exported:
        write_safetensors(one, directory / f"{one.kind}.safetensors")
    config = {
        "schema": SCHEMA,
        "version": max((one.version for one in exported), default=-1),
        "kinds": {
            one.kind: {"rows": len(one.ids), "dim": int(one.vectors.shape[1])} for one in exported
        },
    }
    with _appearing(directory / CONFIG_FILE) as building:
        building.write_text(json.dumps(config, indent=2) + "\n")


def from_pretrained(directory: Path) -> dict[Kind, ExportedVectors]:
    """Every kind that `save_pretrained` put there. Raises FileNotFoundError, RecordInvalid."""
    config = json.loads((directory / CONFIG_FILE).read_text())
    found = [read_safetensors(directory / f"{kind}.safetensors") for kind in config["kinds"]]
    return {one.kind: one for one in found}


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    building = path.with_name(f".{path.name}.building")
    try:
        yield building
        with building.open("rb") as written:
            os.fsync(written.fileno())
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)

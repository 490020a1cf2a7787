"""Representations as files: what a reader holds, read back by the tools people use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from downstream.export import (
    ExportedVectors,
    from_pretrained,
    read_safetensors,
    save_pretrained,
    write_parquet,
    write_safetensors,
)
from runtime.cli import app
from runtime.config_file import write_config
from tests.publishing import DIM, manifest, records, representation, stack_config, tombstone
from tests.readable import Publisher
from topics.admin import ensure_topics
from topics.errors import RecordInvalid


def exported(rows: int = 3) -> ExportedVectors:
    ids = [f"ü{n}" * n for n in range(rows)]  # one id is empty, all others are not ASCII
    return ExportedVectors(
        "user",
        7,
        ids,
        np.arange(rows * DIM, dtype=np.float32).reshape(rows, DIM),
        np.arange(rows, dtype=np.int64),
        np.arange(rows, dtype=np.int64) * 1000,
    )


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_directory_reads_back_what_was_written(tmp_path: Path, rows: int) -> None:
    one = exported(rows)
    save_pretrained([one], tmp_path / "out")
    found = from_pretrained(tmp_path / "out")["user"]
    assert (found.kind, found.version, found.ids) == ("user", 7, one.ids)
    for name in ("vectors", "versions", "event_ms"):
        assert np.array_equal(getattr(found, name), getattr(one, name)), name
    assert json.loads((tmp_path / "out/config.json").read_text())["kinds"]["user"]["rows"] == rows
    assert not list((tmp_path / "out").glob(".*")), "nothing half-written stays"


def test_other_tools_read_the_files(tmp_path: Path) -> None:
    write_parquet(exported(), tmp_path / "u.parquet")
    frame = pl.read_parquet(tmp_path / "u.parquet")
    assert frame.schema["vector"] == pl.Array(pl.Float32, DIM)
    assert frame["id"].to_list() == exported().ids
    assert frame["vector"].to_list()[2] == [8.0, 9.0, 10.0, 11.0]
    write_safetensors(exported(), tmp_path / "u.safetensors")
    assert load_file(tmp_path / "u.safetensors")["vectors"].shape == (3, DIM)
    modes = {path.suffix: path.stat().st_mode for path in tmp_path.glob("u.*")}
    assert modes[".safetensors"] == modes[".parquet"]  # other users may read either


def test_a_file_of_another_making_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "x.safetensors", {"kind": "weights"})
    with pytest.raises(RecordInvalid, match="expected an export with schema=1"):
        read_safetensors(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RecordInvalid, match="not an export"):
        read_safetensors(tmp_path / "y.safetensors")


@pytest.mark.kafka
@pytest.mark.slow
def test_the_verb_writes_one_whole_version(kafka: str, prefix: str, tmp_path: Path) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    file = tmp_path / "c.toml"
    write_config(config, file, comment="export test")
    publisher = Publisher(config, kafka, f"{prefix}-trainer")
    publisher.publish(1, records([representation(f"u{n}", 1) for n in range(4)]), manifest(1))
    gone = [representation("u1", 2), tombstone("u3", 2)]
    publisher.publish(2, records(gone), manifest(2))
    publisher.close()
    at = ["--bootstrap", kafka, "--config", str(file)]
    run = CliRunner().invoke(app, ["export", str(tmp_path / "all"), *at, "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["written"]["user"] == {"rows": 3, "version": 2}
    found = from_pretrained(tmp_path / "all")["user"]
    assert (found.ids, found.versions.tolist()) == (["u0", "u1", "u2"], [1, 2, 1])
    run = CliRunner().invoke(app, ["export", str(tmp_path / "u.parquet"), "--kind", "user", *at])
    assert run.exit_code == 0, run.output
    assert "user: 3 vectors of version 2" in run.stdout
    assert pl.read_parquet(tmp_path / "u.parquet").height == 3


@pytest.mark.parametrize("arguments", [["u.parquet"], ["u.csv", "--kind", "user"]])
def test_a_wrong_name_or_kind_is_bad_usage(tmp_path: Path, arguments: list[str]) -> None:
    run = CliRunner().invoke(app, ["export", *arguments])
    assert run.exit_code == 2
    assert "expected" in run.output

"""`headwater bench` and `study`: called wrongly they say how; a quick run has every key."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from runtime.cli import app
from runtime.verbs import bench, study

runner = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench", "stroe"], "benchmark 'stroe': expected one of"),
        (["bench", "stroe"], "did you mean 'store'?"),
        (["bench", "freshnes"], "did you mean 'freshness'?"),
        (["bench", "store", "--part", "comit"], "did you mean 'commit'?"),
        (["bench", "join", "--part", "commit"], "part of join 'commit': expected one of"),
        (["bench"], "Missing argument 'name'"),
        (["bench", "store", "--quik"], "Possible options: --quick"),
        (["study", "collaps"], "did you mean 'collapse'?"),
        (["study", "deskdrop"], "expected the path of its log"),
    ],
)
def test_a_wrong_call_names_what_was_expected_and_exits_2(arguments: list[str], says: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_every_benchmark_has_its_script() -> None:
    for name in (*bench.BENCHMARKS, *(f"study_{name}" for name in study.STUDIES)):
        assert (bench._FOLDER / f"{name}.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", bench.PARTS)
def test_its_script_knows_every_part(name: str) -> None:
    script = bench._FOLDER / f"{name}.py"
    ran = subprocess.run(
        [sys.executable, str(script), "--part", "?"], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 2
    listed = ran.stderr.rpartition("choose from")[2]
    assert [word.strip(" ()\n'") for word in listed.split(",")] == list(bench.PARTS[name])


@pytest.mark.slow
def test_the_command_line_loads_neither_torch_nor_pyflink() -> None:
    code = "import sys, runtime.cli;sys.exit(bool({'torch', 'pyflink', 'py4j'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_benchmark_that_fails_is_told_and_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BENCHMARKS", ("no_such_script",))
    result = runner.invoke(app, ["bench", "no_such_script"])
    assert isinstance(result.exception, bench.BenchmarkFailed)
    assert "no_such_script ended with exit code" in str(result.exception)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HEADWATER_PROVE"), reason="minutes long: make prove")
def test_the_store_is_measured_beside_its_peers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", "bench", "store", "--json", "--quick"],
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["command"] == "headwater bench store --json --quick" and found["quick"]
    assert set(found["machine"]) == {"cores", "memory_bytes", "python", "load"}
    systems = {"gather", "ours", "ours_full", "torch_adagrad", "torch_sparse_adam"}
    assert systems <= set(found["ms_per_step"]) <= systems | {"fbgemm", "tfra"}
    for key in (
        "ratio_torch_adagrad",
        "ratio_torch_sparse_adam",
        "growth_per_decade",
        "commit_rows_per_second",
        "memory_bytes_per_row",
    ):
        assert found[key] > 0
    for of_universe in found["by_universe"].values():
        for of_system in of_universe["ms_per_step"].values():
            assert of_system["rounds"] >= 3
            assert of_system["min"] <= of_system["median"] <= of_system["max"]
    for key in (
        *("ratio_fbgemm", "ratio_tfra", "ratio_lmdb", "ratio_rocksdb_only", "ssd_fraction"),
        *("steps_kept_while_committing", "restart_seconds"),
    ):
        assert (key in found) != (key in found["not_run"]), key
        assert found.get(key, 1) > 0 and found["not_run"].get(key, "a reason")

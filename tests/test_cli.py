"""The command line as a person meets it: exit codes, and errors that say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from runtime.choices import chosen
from runtime.cli import _CALLED_WRONGLY, _FAILED, app
from runtime.run_state import DirectoryLock, NoStack, RunState, StackRunning, require_run, write_run
from topics.metrics import MetricsServer

runner = CliRunner()
_FILES = ("--impressions", "{file}", "--conversions", "{file}")
_CONFIG_AND_OUT = ("--config", "{good}", "--out", "{new}")
_TRAIN = ("train", "--samples", "{file}", "--config", "{good}")


def _headwater(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The real program, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "runtime.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["consum"], "No such command 'consum'. Did you mean 'consume'?"),
        (["consume", "sampels"], "topic 'sampels': expected one of"),
        (["consume", "sampels"], "did you mean 'samples'?"),
        (["consume", "representations.usr"], "did you mean 'representations.user'?"),
        (["produce", "impressions", "/none", "--bootstrap", "h:1"], "/none: No such file"),
        (["demo", "--source", "deskdrp"], "did you mean 'deskdrop'?"),
        (["demo", "--secnds", "3"], "Possible options: --seconds"),
        (["demo", "--seconds", "soon"], "'soon': expected a number above 0"),
        (["produce", "impresions", "-"], "did you mean 'impressions'?"),
        (["config", "check"], "which file?"),
        (["join", "--impressions", "x"], "Missing option '--conversions'"),
        (["train", "--samples", "x"], "Missing option '--config'"),
    ],
)
def test_a_wrong_call_names_what_was_expected_and_exits_2(arguments: list[str], says: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize(
    "verb",
    [
        "up",
        "down",
        "status",
        "doctor",
        "produce",
        "consume",
        "demo",
        "join",
        "train",
        "models",
        "audit",
        "config",
    ],
)
def test_every_verb_has_help(verb: str) -> None:
    result = runner.invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_models_are_listed_with_their_papers() -> None:
    lines = runner.invoke(app, ["models"]).output.splitlines()
    found = json.loads(runner.invoke(app, ["models", "--json"]).output)
    assert len(lines) == len(found) >= 3
    assert any(model["name"] == "lfm4ads" for model in found)


def test_config_show_says_where_values_come_from(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[kinds.buy]\nwindow = '2h'\n")
    shown = runner.invoke(app, ["config", "show", "--config", str(file), "--json"])
    values = {row["name"]: (row["value"], row["origin"]) for row in json.loads(shown.output)}
    assert values["kinds.buy.window"] == ("2h", str(file))
    assert values["join.policy"] == ("wait", "default")
    assert runner.invoke(app, ["config", "check", str(file)]).output.startswith("ok: 1 kinds")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["config", "check", "{model}"], "got 'lfm4add'; did you mean 'lfm4ads'?"),
        (["consume", "samples", "--bootstrap", "foo"], "expected host:port[,host:port], got 'foo'"),
        (["simulate", "--bootstrap", "h:99999"], "expected host:port[,host:port], got 'h:99999'"),
        (["up", "--config", "{model}"], "model.name: expected one of ame, crocodile,"),
        (["join", *_FILES, "--config", "{model}", "--out", "{new}"], "did you mean 'lfm4ads'?"),
        (["join", *_FILES, "--config", "{good}", "--out", "{file}"], "expected a directory"),
        (
            [*("join", "--impressions", "{dir}", "--conversions", "{file}"), *_CONFIG_AND_OUT],
            "--impressions {dir}: expected a file, this is a directory",
        ),
        (
            [*("join", "--impressions", "{file}", "--conversions", "{new}"), *_CONFIG_AND_OUT],
            "--conversions {new}: no such file",
        ),
        ([*_TRAIN, "--report", "{new}/r.json"], "expected a file in a directory that exists"),
        ([*_TRAIN, "--report", "{dir}"], "expected a file in a directory that exists"),
        (["demo", "--report", "{new}/r.json"], "expected a file in a directory that exists"),
        (["export", "{new}/u.parquet", "--kind", "user"], "expected a file in a directory that ex"),
        ([*_TRAIN, "--report", "{new}", "--store", "{file}"], "--store {file}: expected a direct"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_starts(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    places = {"dir": tmp_path, "new": tmp_path / "new"}
    texts = {"file": "", "good": "", "model": "[model]\nname = 'lfm4add'\n"}
    for name, text in texts.items():
        places[name] = tmp_path / name
        places[name].write_text(text)
    result = runner.invoke(app, [argument.format(**places) for argument in arguments])
    assert result.exit_code == 2 or isinstance(result.exception, _CALLED_WRONGLY)
    said = " ".join((result.output + str(result.exception)).split())
    assert says.format(**places) in said


def test_every_failure_of_the_runtime_is_one_line_and_not_a_traceback() -> None:
    known = (*_FAILED, *_CALLED_WRONGLY)
    for module in [m for name, m in sys.modules.items() if name.startswith("runtime.")]:
        for name, found in vars(module).items():
            if isinstance(found, type) and issubclass(found, Exception):
                ours = found.__module__.startswith("runtime.")
                assert not ours or issubclass(found, known), name


def test_a_taken_port_is_named() -> None:
    first = MetricsServer(0)
    try:
        with pytest.raises(OSError, match=rf"on 127.0.0.1:{first.port}: .* another --metrics-port"):
            MetricsServer(first.port)
    finally:
        first.close()


def test_version_is_told() -> None:
    assert runner.invoke(app, ["--version"]).output == f"headwater {version('headwater')}\n"


def test_nearest_is_left_out_where_nothing_is_near() -> None:
    with pytest.raises(Exception, match=r"colour 'zzz': expected one of red, blue$"):
        chosen("zzz", ("red", "blue"), "colour")


@pytest.mark.slow
def test_a_directory_that_cannot_be_made_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = _headwater("up", "--dir", str(tmp_path / "file" / "stack"))
    assert refused.returncode == 1
    [line] = refused.stderr.splitlines()
    assert f"{tmp_path}/file" in line and "Not a directory" in line
    assert "give a path that this user may read or write" in line


def test_no_command_waits_for_what_it_does_not_use() -> None:
    """polars and torch take a second and more to load; `--help` needs neither."""
    code = "import sys, runtime.cli; print({'polars', 'torch', 'pyflink'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("absent", "arguments"),
    [("torch", ["analyse", "collapse"]), ("rocksdict", ["store", "stats"])],
)
def test_without_an_optional_package_a_command_says_so_in_one_line(
    tmp_path: Path, absent: str, arguments: list[str]
) -> None:
    """As in the image `tools`: the interpreter is told that the package is not there."""
    block = f"import sys; sys.modules[{absent!r}] = None"
    code = (
        "import importlib.util as u; real = u.find_spec; "
        f"u.find_spec = lambda name: None if name == {absent!r} else real(name); "
        f"{block}; sys.argv = {['headwater', *arguments]!r}; from runtime.cli import main; main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1), ran.stderr
    assert f"headwater: {absent} is not installed here" in ran.stderr


def test_expected_errors_are_one_line_and_exit_1_or_2(tmp_path: Path) -> None:
    none = _headwater("consume", "samples", "--dir", str(tmp_path))
    assert (none.returncode, none.stderr.count("\n")) == (1, 1)
    assert "no stack was started in" in none.stderr
    wrong = tmp_path / "c.toml"
    wrong.write_text("[join]\npolicy = 'wiat'\n")
    bad = _headwater("config", "check", str(wrong))
    assert bad.returncode == 2
    assert "join.policy: expected 'wait' or 'correct', got 'wiat'" in bad.stderr


@pytest.mark.slow
def test_without_java_up_says_so_in_one_line(tmp_path: Path) -> None:
    result = _headwater("up", "--dir", str(tmp_path / "d"), PATH="/nowhere", JAVA_HOME="")
    assert result.returncode == 1
    assert "Java was not found on PATH nor in JAVA_HOME: install a JDK 17" in result.stderr
    config = tmp_path / "c.toml"
    config.write_text("")
    events = tmp_path / "e.jsonl"
    events.write_text("")
    files = ("--impressions", str(events), "--conversions", str(events), "--config", str(config))
    join = _headwater("join", *files, "--out", str(tmp_path / "o"), PATH="/nowhere", JAVA_HOME="")
    assert (join.returncode, join.stderr.count("\n")) == (1, 1)
    assert "Java was not found" in join.stderr
    doctor = _headwater("doctor", "--dir", str(tmp_path), PATH="/nowhere", JAVA_HOME="")
    assert doctor.returncode == 1
    assert "wrong  java: Java was not found" in doctor.stdout


@pytest.mark.slow
def test_without_jars_up_says_what_to_run(tmp_path: Path) -> None:
    result = _headwater("up", "--dir", str(tmp_path / "d"), HEADWATER_JARS=str(tmp_path))
    assert result.returncode == 1
    assert "run `make setup`" in result.stderr


def test_a_second_stack_on_one_directory_is_refused_by_pid(tmp_path: Path) -> None:
    write_run(tmp_path, _run(pid=os.getpid()))
    other = [sys.executable, "-c", _HOLD.format(directory=str(tmp_path))]
    with subprocess.Popen(other, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StackRunning, match="another --dir"), DirectoryLock(tmp_path):
            pass
        holder.kill()
    with DirectoryLock(tmp_path):  # the kernel freed it
        pass


_HOLD = """
from pathlib import Path
from runtime.run_state import DirectoryLock
with DirectoryLock(Path({directory!r})):
    print("held", flush=True)
    input()
"""


def test_a_stale_run_file_is_told_from_a_live_stack(tmp_path: Path) -> None:
    with pytest.raises(NoStack, match="no stack was started"):
        require_run(tmp_path)
    write_run(tmp_path, _run(pid=os.getpid()))  # that pid lives, but was created at another time
    with pytest.raises(NoStack, match=f"its pid {os.getpid()} is gone"):
        require_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(NoStack):
        require_run(tmp_path)


def _run(pid: int) -> RunState:
    return RunState(
        run_id="r",
        pid=pid,
        pid_created=1.0,
        started_ms=0,
        bootstrap="127.0.0.1:1",
        cluster_id="c",
        topic_prefix="headwater",
        config="c.toml",
        embedded=True,
    )


@pytest.fixture(autouse=True)
def _logs_as_before() -> object:
    yield
    structlog.reset_defaults()

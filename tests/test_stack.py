"""A whole stack by the command line: up, in, out, refused twice, killed, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runtime.run_state import RUN_ID_VARIABLE, read_run
from runtime.sources.simulated import SimulatedTraffic

pytestmark = [pytest.mark.kafka, pytest.mark.flink, pytest.mark.slow]
HEADWATER = [sys.executable, "-m", "runtime.cli"]
CONFIG = """
domains = ["feed"]
[kinds.click]
window = "10s"
[kinds.like]
window = "20s"
[kinds.purchase]
window = "30s"
[join]
policy = "correct"
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HEADWATER, *arguments], capture_output=True, text=True, timeout=250, check=False
    )


def _until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.2)


def _processes_of(run_id: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_ID_VARIABLE) == run_id:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _write_traffic(directory: Path, impressions: int) -> None:
    """Files of traffic that starts now, with every fault."""
    source = SimulatedTraffic(
        start_ms=time.time_ns() // 1_000_000 - 60_000, impressions_max=impressions
    )
    files = {
        name: (directory / f"{name}.jsonl").open("wb") for name in ("impressions", "conversions")
    }
    for event in source.events():
        files[event.stream].write(event.line + b"\n")
    for file in files.values():
        file.close()


@pytest.mark.kill
@pytest.mark.timeout(600)
def test_a_stack_comes_up_learns_is_refused_twice_and_leaves_nothing_when_killed(
    tmp_path: Path,
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG)
    directory = tmp_path / "stack"
    at = ("--dir", str(directory))
    _write_traffic(tmp_path, 500)
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [*HEADWATER, "up", *at, "--config", str(config)], stdout=log, stderr=log
        )
    try:
        _until(lambda: b"\nup: Kafka at" in (tmp_path / "up.log").read_bytes(), 250, "up")
        second = _run("up", *at)
        assert second.returncode == 1
        assert f"already runs in {directory} (pid {up.pid})" in second.stderr
        for stream in ("impressions", "conversions"):
            sent = _run("produce", stream, str(tmp_path / f"{stream}.jsonl"), *at)
            assert sent.returncode == 0, sent.stderr

        def vectors() -> list[str]:
            read = _run("consume", "representations.user", *at, "--to-end", "--jsonl")
            return read.stdout.splitlines()

        _until(lambda: bool(vectors()), 120, "a vector")
        vector = json.loads(vectors()[0])
        assert len(vector["vector"]) == vector["hw_dim"] > 0
        status = json.loads(_run("status", *at, "--json").stdout)
        assert status["version"] >= 1
        assert status["restarts"] == {"total": 0}
        doctor = _run("doctor", *at)
        assert doctor.returncode == 0, doctor.stdout
    finally:
        run = read_run(directory)
        os.kill(up.pid, signal.SIGKILL)
        up.wait()
    assert run is not None
    _until(lambda: not _processes_of(run.run_id), 20, "every process of the stack has ended")
    gone = _run("status", *at)
    assert gone.returncode == 1
    assert f"its pid {up.pid} is gone" in gone.stderr


@pytest.mark.timeout(600)
def test_join_gives_every_line_one_verdict_and_its_files_say_which(tmp_path: Path) -> None:
    _write_traffic(tmp_path, 400)
    impressions, conversions = tmp_path / "impressions.jsonl", tmp_path / "conversions.jsonl"
    config, out = tmp_path / "c.toml", tmp_path / "out"
    config.write_text(CONFIG)
    with impressions.open("ab") as file:
        file.write(b"\xff not UTF-8\n" + b'{"pad":"' + b"x" * 2_000_000 + b'"}\n')
    files = ("--impressions", str(impressions), "--conversions", str(conversions))
    joined = _run("join", *files, "--config", str(config), "--out", str(out), "--json")
    assert joined.returncode == 1, "the oversized line"
    number = len(impressions.read_bytes().splitlines())
    assert f"impressions line {number}: refused, 2000010 bytes are over" in joined.stderr
    report = json.loads(joined.stdout)
    assert report == json.loads((out / "audit.json").read_text())
    assert report["balanced"], report["differences"]
    assert report["impressions"]["in"] == number - 1
    lines = {path.stem: path.read_bytes().splitlines() for path in out.glob("*.jsonl")}
    samples = [json.loads(line) for line in lines["samples"]]
    assert sum(s["state"] == "final" for s in samples) == report["impressions"]["sampled"]
    assert len(lines["attributions"]) == report["conversions"]["attributed"]
    counts = {"late": "late", "duplicates": "duplicate", "undecodable": "undecodable"}
    for file_name, verdict in counts.items():
        of_both = sum(report[stream][verdict] for stream in ("impressions", "conversions"))
        assert len(lines[file_name]) == of_both
    assert len(lines["orphans"]) == report["conversions"]["orphan"]
    assert any("base64" in json.loads(line) for line in lines["undecodable"])
    known = [s["event_ms"] + s["elapsed_ms"] for s in samples]
    assert known == sorted(known)

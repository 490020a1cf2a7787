"""One stack with traffic going through it, looked at in every way, and killed at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from runtime.machine import _is_loopback, _listening
from tests.prometheus import RULES, Prometheus, needs_prometheus, panels_without_data
from tests.running_stack import RunningStack, headwater, processes_of, until, write_traffic

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.flink,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("running")
    write_traffic(folder, 6000, began_s=120)
    stack = RunningStack(folder)
    try:
        stack.wait()
        stack.send(impressions="60", conversions="12")
        yield stack
    finally:
        stack.close()


def test_vectors_come_out_and_a_second_stack_is_refused(stack: RunningStack) -> None:
    second = headwater("up", *stack.at)
    assert second.returncode == 1
    assert f"already runs in {stack.directory} (pid {stack.up.pid})" in second.stderr

    def vectors() -> list[str]:
        read = headwater("consume", "representations.user", *stack.at, "--to-end", "--jsonl")
        return read.stdout.splitlines()

    until(vectors, 120, "a vector")
    vector = json.loads(vectors()[0])
    assert len(vector["vector"]) == vector["hw_dim"] > 0
    status = json.loads(headwater("status", *stack.at, "--json").stdout)
    assert status["version"] >= 1
    assert status["restarts"] == {"total": 0}
    doctor = headwater("doctor", *stack.at)
    assert doctor.returncode == 0, doctor.stdout


def test_every_port_of_it_is_on_loopback(stack: RunningStack) -> None:
    listening = {
        name: _listening(child.pid) for name, child in stack.run.children.items() if child.pid
    }
    assert all(listening[name] for name in ("broker", "join", "trainer", "reader")), listening
    assert sum(map(len, listening.values())) >= 6  # with the controller's and Flink's
    wide = [at for found in listening.values() for at in found if not _is_loopback(at[0])]
    assert not wide, wide


def test_every_line_of_every_log_names_the_run_and_its_process(stack: RunningStack) -> None:
    lines = [(stack.folder / "up.log").read_text().splitlines()]
    lines += [Path(child.log).read_text().splitlines() for child in stack.run.children.values()]
    logged = [json.loads(line) for of in lines for line in of if line.startswith("{")]
    assert {line.get("run") for line in logged} == {stack.run.run_id}
    assert {line["process"] for line in logged} >= {"supervisor", "join", "reader"}
    assert all({"level", "timestamp", "event"} <= line.keys() for line in logged)


def test_the_page_shows_the_stack_and_holds_no_script(stack: RunningStack) -> None:
    file = stack.folder / "now.html"
    written = headwater("status", *stack.at, "--html", str(file))
    assert written.returncode == 0, written.stderr
    text = file.read_text()
    for shown in ("joined per second", "fresh user vectors", "impressions", "sampled", "running"):
        assert shown in text, shown
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")


@needs_prometheus
def test_every_panel_has_data(stack: RunningStack) -> None:
    config = headwater("status", *stack.at, "--prometheus", "--rules", str(RULES))
    assert config.returncode == 0, config.stderr
    prometheus = Prometheus(stack.folder / "prometheus", config.stdout)
    try:
        empty = panels_without_data(prometheus.query, 200)
        assert not empty, "panels without data:\n" + "\n".join(empty)
        rules = [r for g in prometheus.ask("rules")["groups"] for r in g["rules"]]
        assert {r["health"] for r in rules} == {"ok"}, rules
        targets = prometheus.ask("targets")["activeTargets"]
        assert {t["labels"]["job"] for t in targets} == {"join", "trainer", "reader"}
    finally:
        prometheus.close()


@pytest.mark.kill
def test_killed_it_leaves_nothing(stack: RunningStack) -> None:
    """The last one: the stack is gone after it."""
    run = stack.run
    stack.kill()
    until(lambda: not processes_of(run.run_id), 20, "every process of the stack has ended")
    gone = headwater("status", *stack.at)
    assert gone.returncode == 1
    assert f"its pid {stack.up.pid} is gone" in gone.stderr
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{run.children['reader'].metrics_port}/metrics", timeout=2)

"""One stack with traffic going through it, looked at in every way, and killed at the end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer

from downstream.export import from_pretrained
from downstream.pretrained import load_mix_tower
from runtime.machine import _is_loopback, _listening
from settings.config import Config
from tests.prometheus import RULES, Prometheus, needs_prometheus, panels_without_data
from tests.running_stack import RunningStack, headwater, processes_of, until, write_traffic
from topics.client import producer_settings

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.flink,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("running")
    write_traffic(folder, 20_000, began_s=120)  # for minutes, on a slow machine, too
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


def _vectors(stack: RunningStack) -> dict[str, dict[str, Any]]:
    """The newest vector of every user that has one, as `consume` prints it."""
    read = headwater("consume", "representations.user", *stack.at, "--to-end", "--jsonl")
    assert read.returncode == 0, read.stderr
    newest = {line["id"]: line for line in map(json.loads, read.stdout.splitlines())}
    return {user: line for user, line in newest.items() if line["vector"] is not None}


def _take_over_the_sink(stack: RunningStack) -> None:
    """As a second join on the same topics would: who takes over the sink's transactions ends it.
    Which ids of the pool are in use just now is the sink's to know."""
    for task in range(4):
        rival = Producer(
            producer_settings(
                Config(), stack.run.bootstrap, transactional_id=f"headwater-join-0-{task}"
            )
        )
        rival.init_transactions(30)


@pytest.mark.kill
def test_doctor_names_what_goes_wrong_while_it_runs(stack: RunningStack) -> None:
    """A stream that falls silent, a process that was killed, a job that Flink restarts."""
    stack.silence("conversions")
    reader = stack.run.children["reader"].pid
    assert reader is not None
    os.kill(reader, signal.SIGKILL)
    told: dict[str, dict[str, str]] = {}

    def named() -> bool:
        said = headwater("doctor", *stack.at, "--json")
        told.update({finding["check"]: finding for finding in json.loads(said.stdout)})
        if "join job" not in told:
            _take_over_the_sink(stack)
        silent = "conversions" in told.get("idle partitions", {"says": ""})["says"]
        return silent and "join job" in told and told["reader"]["says"].startswith("restarted 1 ")

    try:
        until(named, 90, "doctor names all three")
    except AssertionError as late:
        raise AssertionError(f"{late}; it said {told}") from None
    assert told["join job"]["verdict"] == told["reader"]["verdict"] == "warning"
    assert "killed by" in told["reader"]["says"], told["reader"]
    assert told["idle partitions"]["verdict"] == "ok"
    children = stack.run.children
    assert children["join"].log in told["join job"]["fix"]
    assert children["reader"].log in told["reader"]["fix"]


def test_a_refresh_publishes_every_vector_anew(stack: RunningStack) -> None:
    before = _vectors(stack)
    asked = headwater("refresh", *stack.at, "--json", "--wait", "60s")
    assert asked.returncode == 0, asked.stderr
    version = json.loads(asked.stdout)["version"]
    assert any(vector["hw_version"] < version for vector in before.values())

    def old() -> list[str]:
        now = _vectors(stack)
        return [user for user in before if now[user]["hw_version"] < version]

    until(lambda: not old(), 60, f"every vector is of version {version} or newer")


def test_a_user_is_forgotten_beside_the_learning(stack: RunningStack) -> None:
    user = "someone-who-leaves"
    # A little ahead of the traffic, which goes on: behind it the event would be late, and far ahead
    # of all others it would pass for one of a wrong clock, which no watermark follows.
    newest_ms = max(vector["hw_event_ms"] for vector in _vectors(stack).values())
    event = {"impression_id": "of-one-who-leaves", "user_id": user, "item_id": "i1"}
    event |= {"event_ms": newest_ms + 5_000, "domain": "feed", "features": {}}
    file = stack.folder / "leaves.jsonl"
    file.write_text(json.dumps(event) + "\n")
    sent = headwater("produce", "impressions", str(file), *stack.at)
    assert sent.returncode == 0, sent.stderr
    until(lambda: user in _vectors(stack), 90, "a vector of the user")
    forgotten = headwater("forget", "user", user, *stack.at, "--json", "--wait", "60s")
    assert forgotten.returncode == 0, forgotten.stdout + forgotten.stderr
    places = {place["name"]: place for place in json.loads(forgotten.stdout)["places"]}
    assert places["a reader"]["found"] == 0 and places["impressions"]["found"] == 1
    assert user not in _vectors(stack)


def test_the_weights_go_out_beside_the_learning(stack: RunningStack) -> None:
    out = stack.folder / "pretrained"
    command = ("export", str(out), *stack.at, "--weights", "--checkpoint", "latest")
    until(lambda: headwater(*command).returncode == 0, 90, "a checkpoint with weights")
    exported, tower = from_pretrained(out), load_mix_tower(out)
    assert len(exported["user"].ids) == len(exported["user"].vectors) > 0
    assert tower.version >= 1


def test_who_asks_for_what_is_not_there_is_told_what_is(stack: RunningStack) -> None:
    for command in (["store", "verify"], ["analyse", "collapse"]):
        locked = headwater(*command, *stack.at)
        assert locked.returncode == 1
        assert "already open" in locked.stderr and "checkpoint" in locked.stderr, locked.stderr
    read = headwater("analyse", "collapse", *stack.at, "--checkpoint", "latest")
    assert read.returncode == 0 and "information abundance" in read.stdout, read.stderr
    for command in (["switch", "nosuch"], ["compare", "live", "nosuch"]):
        unknown = headwater(*command, *stack.at)
        assert unknown.returncode == 2
        assert "no replay 'nosuch'" in unknown.stderr and "one of live" in unknown.stderr


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

"""One stack with traffic going through it, looked at in every way, and killed at the end."""

from __future__ import annotations

import json
import os
import signal
import time
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
    pytest.mark.timeout(1200),
]
WAIT_S = 240.0
"""Waits end when what they wait for is there; this is for machines that are very busy."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("running")
    write_traffic(folder, 40_000, began_s=240)  # for minutes, on a slow machine, too
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

    until(vectors, WAIT_S, "a vector")
    vector = json.loads(vectors()[0])
    assert len(vector["vector"]) == vector["hw_dim"] > 0
    told: list[Any] = []

    def version() -> int:  # none where the reader was too busy to say
        told.append(json.loads(headwater("status", *stack.at, "--json").stdout))
        return told[-1]["version"] or 0

    until(version, WAIT_S, "status tells the version")
    assert told[-1]["restarts"] == {"total": 0}
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
    files = [stack.folder / "up.log", *(Path(c.log) for c in stack.run.children.values())]
    # of each the last line may be half-written
    lines = [line for file in files for line in file.read_text().split("\n")[:-1]]
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert {line.get("run") for line in logged} == {stack.run.run_id}
    assert {line["process"] for line in logged} >= {"supervisor", "join", "reader"}
    assert all({"level", "timestamp", "event"} <= line.keys() for line in logged)


def test_the_page_shows_the_stack_and_holds_no_script(stack: RunningStack) -> None:
    file = stack.folder / "now.html"

    def missing() -> list[str]:
        written = headwater("status", *stack.at, "--html", str(file))
        assert written.returncode == 0, written.stderr
        wanted = ("joined per second", "fresh user vectors", "impressions", "sampled", "running")
        return [shown for shown in wanted if shown not in file.read_text()]

    until(lambda: not missing(), WAIT_S, "the page shows what every process says")
    text = file.read_text()
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
        rival.init_transactions(60)


@pytest.mark.kill
def test_doctor_names_what_goes_wrong_while_it_runs(stack: RunningStack) -> None:
    """A stream that falls silent, a process that was killed, a job that Flink restarts."""
    stack.silence("conversions")
    reader = stack.run.children["reader"].pid
    assert reader is not None
    os.kill(reader, signal.SIGKILL)
    told: dict[str, dict[str, str]] = {}
    taken_over = [0.0]

    def named() -> bool:
        said = headwater("doctor", *stack.at, "--json")
        told.update({finding["check"]: finding for finding in json.loads(said.stdout)})
        # Not again and again: a join that ends four times in a minute ends the stack.
        if "join job" not in told and time.monotonic() - taken_over[0] > 30:
            _take_over_the_sink(stack)
            taken_over[0] = time.monotonic()
        silent = "conversions" in told.get("idle partitions", {"says": ""})["says"]
        return silent and "join job" in told and told["reader"]["says"].startswith("restarted 1 ")

    try:
        until(named, WAIT_S, "doctor names all three")
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
    asked = headwater("refresh", *stack.at, "--json", "--wait", "180s")
    assert asked.returncode == 0, asked.stderr
    version = json.loads(asked.stdout)["version"]
    assert any(vector["hw_version"] < version for vector in before.values())

    def old() -> list[str]:
        now = _vectors(stack)
        return [user for user in before if now[user]["hw_version"] < version]

    until(lambda: not old(), WAIT_S, f"every vector is of version {version} or newer")


def test_a_user_is_forgotten_beside_the_learning(stack: RunningStack) -> None:
    user = "someone-who-leaves"
    sent, wait_until = [], [0.0]

    def has_a_vector() -> bool:
        vectors = _vectors(stack)
        if user in vectors or time.monotonic() < wait_until[0]:
            return user in vectors
        # A little ahead of the traffic, which goes on: behind it the event would be late, and far
        # ahead of all others it would pass for one of a wrong clock, which no watermark follows.
        # Where that little has passed before the event is sent, there is another.
        newest_ms = max(vector["hw_event_ms"] for vector in vectors.values())
        sent.append(f"of-one-who-leaves-{len(sent)}")
        event = {"impression_id": sent[-1], "user_id": user, "item_id": "i1"}
        event |= {"event_ms": newest_ms + 5_000, "domain": "feed", "features": {}}
        file = stack.folder / "leaves.jsonl"
        file.write_text(json.dumps(event) + "\n")
        produced = headwater("produce", "impressions", str(file), *stack.at)
        assert produced.returncode == 0, produced.stderr
        wait_until[0] = time.monotonic() + 20
        return False

    until(has_a_vector, WAIT_S, "a vector of the user")
    forgotten = headwater("forget", "user", user, *stack.at, "--json", "--wait", "180s")
    assert forgotten.returncode == 0, forgotten.stdout + forgotten.stderr
    places = {place["name"]: place for place in json.loads(forgotten.stdout)["places"]}
    assert places["a reader"]["found"] == 0 and places["impressions"]["found"] == len(sent)
    assert user not in _vectors(stack)


def test_the_weights_go_out_beside_the_learning(stack: RunningStack) -> None:
    out = stack.folder / "pretrained"
    command = ("export", str(out), *stack.at, "--weights", "--checkpoint", "latest")
    until(lambda: headwater(*command).returncode == 0, WAIT_S, "a checkpoint with weights")
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
    until(lambda: not processes_of(run.run_id), 60, "every process of the stack has ended")
    gone = headwater("status", *stack.at)
    assert gone.returncode == 1
    assert f"its pid {stack.up.pid} is gone" in gone.stderr
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{run.children['reader'].metrics_port}/metrics", timeout=2)

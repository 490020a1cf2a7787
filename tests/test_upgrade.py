"""What kept state allows the next release and the next config to change, refused before Flink."""

from __future__ import annotations

import re
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

import stream
from settings.config import Config
from stream import kept_plans
from stream.errors import JoinConfigChanged, JoinFailed, JoinPlanUnknown, SavepointOld
from stream.job import JAR_NAMES, jar_paths
from stream.kept_plans import plan_for, plans
from stream.plan import JAR_CONTRACT, OPERATORS
from stream.restore import (
    SavedState,
    check_parallelism,
    check_shape,
    require_newest,
    saved_states,
    shape_of,
)


def _config(**sections: Any) -> Config:
    kinds = {"buy": {"window": "2h"}, "like": {"window": "1h"}}
    return Config.model_validate({"kinds": kinds} | sections)


def test_the_newest_plan_is_that_of_the_job() -> None:
    """Fails when an operator's uid, a state's name or a pair's layout changes: then the plan needs
    a successor, and kept state a way to it."""
    newest = plans()[-1]
    assert set(newest.operators) == set(OPERATORS.values())
    operator = Path(stream.__path__[0]) / "java/src/main/java/dev/headwater/join"
    names = re.findall(r'= state\("(\w+)"\)', (operator / "FlinkPages.java").read_text("utf-8"))
    own = (operator / "AttributionJoin.java").read_text("utf-8")
    names += re.findall(r'StateDescriptor<>\("(\w+)"', own)
    assert sorted(names) == newest.operators[OPERATORS["join"]]
    codec = (operator / "PairCodec.java").read_text("utf-8")
    assert f"int VERSION = {newest.pair_layout};" in codec


def test_state_keeps_the_plan_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = plans()[-1]
    successor = msgspec.structs.replace(kept, name="next", number=kept.number + 1)
    for file in (kept, successor):
        (tmp_path / f"{file.name}.json").write_bytes(msgspec.json.encode(file))
    monkeypatch.setattr(kept_plans, "_FOLDER", tmp_path)
    assert plan_for(None).name == "next"
    assert plan_for(kept.name).name == kept.name
    with pytest.raises(JoinPlanUnknown, match=f"'v0', and this release has {kept.name}, next"):
        plan_for("v0")


def test_a_jar_of_another_release_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Path(stream.__path__[0]) / "java/src/main/resources/dev/headwater/join/contract"
    assert kept.read_text("ascii").strip() == str(JAR_CONTRACT)
    monkeypatch.setenv("HEADWATER_JARS", str(tmp_path))
    (tmp_path / "flink").mkdir()
    for name in JAR_NAMES:
        with zipfile.ZipFile(tmp_path / "flink" / name, "w") as jar:
            jar.writestr("dev/headwater/join/contract", f"{JAR_CONTRACT}\n")
    assert len(jar_paths()) == len(JAR_NAMES)
    for contract, told in ({"dev/headwater/join/contract": "1\n"}, "got 1"), ({}, "got none"):
        with zipfile.ZipFile(tmp_path / "flink" / JAR_NAMES[0], "w") as jar:
            for file, text in contract.items():
                jar.writestr(file, text)
        with pytest.raises(JoinFailed, match=rf"(?s){told}.*make jars"):
            jar_paths()


MAY_CHANGE: dict[str, dict[str, Any]] = {
    "parallelism": {"join": {"parallelism": 4}},
    "lateness": {"join": {"lateness": "1min"}},
    "checkpoints": {"join": {"checkpoint_interval": "5s", "idle_timeout": "1min"}},
    "features": {"slots": {"age": {"type": "numeric"}}, "domains": ["a"]},
    "model": {"model": {"embedding_dim": 8}},
    "the future": {"events": {"future_bound": "1h"}},
    "a kind": {
        "kinds": {"buy": {"window": "2h"}, "like": {"window": "1h"}, "rent": {"window": "2h"}}
    },
}
MAY_NOT: dict[str, tuple[dict[str, Any], str]] = {
    "a window": (
        {"kinds": {"buy": {"window": "3h"}, "like": {"window": "1h"}}},
        "kinds.buy.window was 7200000 ms, is 10800000 ms",
    ),
    "a kind gone": ({"kinds": {"buy": {"window": "2h"}}}, "kinds.like is gone"),
    "order": (
        {"kinds": {"like": {"window": "1h"}, "buy": {"window": "2h"}}},
        "kinds were buy, like, are like, buy: a new one goes to the end",
    ),
    "a longer kind": (
        {"kinds": {"buy": {"window": "2h"}, "like": {"window": "1h"}, "rent": {"window": "9h"}}},
        "kinds.rent.window is 32400000 ms, longer than any before",
    ),
    "policy": ({"join": {"policy": "correct"}}, "join.policy was 'wait', is 'correct'"),
    "elapsed": ({"join": {"elapsed": "5s"}}, "join.elapsed"),
    "prefix": ({"kafka": {"topic_prefix": "b"}}, "kafka.topic_prefix was 'headwater', is 'b'"),
    "events": ({"kafka": {"events_prefix": "b"}}, "kafka.events_prefix was '', is 'b'"),
}


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_may_change_on_kept_state(name: str) -> None:
    check_shape(shape_of(_config(), "v1"), shape_of(_config(**MAY_CHANGE[name]), "v1"))


@pytest.mark.parametrize("name", MAY_NOT)
def test_may_not_change_on_kept_state(name: str) -> None:
    sections, says = MAY_NOT[name]
    with pytest.raises(JoinConfigChanged, match=says):
        check_shape(shape_of(_config(), "v1"), shape_of(_config(**sections), "v1"))


def test_fewer_tasks_go_on_from_a_savepoint_only(tmp_path: Path) -> None:
    """Transactions of tasks that are no more would stay open beside a checkpoint."""
    before, now = (shape_of(_config(join={"parallelism": n}), "v2") for n in (3, 2))
    checkpoint = SavedState(7, tmp_path, is_savepoint=False)
    with pytest.raises(JoinConfigChanged, match=r"parallelism was 3, is 2: .*down --savepoint"):
        check_parallelism(before, now, checkpoint)
    check_parallelism(before, now, SavedState(7, tmp_path, is_savepoint=True))
    check_parallelism(now, before, checkpoint)


def _state(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "_metadata").write_bytes(struct.pack(">iiq", 0x4960672D, 5, number) + b"...")
    return folder


def test_the_newest_of_checkpoints_and_savepoints_is_restored(tmp_path: Path) -> None:
    _state(tmp_path / "checkpoints" / "a" / "chk-9", 9)
    newest = _state(tmp_path / "savepoints" / "savepoint-1", 12)
    time.sleep(0.01)
    older = _state(tmp_path / "checkpoints" / "a" / "chk-11", 11)
    (tmp_path / "checkpoints" / "a" / "chk-13").mkdir()  # never completed
    cut = _state(tmp_path / "checkpoints" / "a" / "chk-14", 14)
    (cut / "_metadata").write_bytes(b"\x49\x60")
    assert [saved.number for saved in saved_states(tmp_path)] == [12, 11, 9]
    assert require_newest(tmp_path, newest).is_savepoint
    with pytest.raises(SavepointOld, match="savepoint-1: what the join wrote in between"):
        require_newest(tmp_path, older)
    (tmp_path / "shape.json").write_text("{}")
    with pytest.raises(SavepointOld):  # another state directory, which knows nothing newer
        require_newest(tmp_path / "other", older)
    with pytest.raises(JoinConfigChanged, match="holds no complete savepoint"):
        require_newest(tmp_path, tmp_path / "elsewhere")

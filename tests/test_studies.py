"""What the studies share: a run that was cut goes on with what it has; what a verdict claims."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.verbs.bench import _FOLDER


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(_FOLDER))
    import study_frame
    import study_seeds

    yield study_frame, study_seeds


def test_a_run_that_was_cut_goes_on_and_a_new_one_begins_anew(studies: Any, tmp_path: Path) -> None:
    frame, seeds = studies
    asked: list[int] = []

    def measure(seed: int) -> dict[str, Any]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(seed)
        return {"auc": {"10 s": seed + 0.5, "1 s": seed / 3}, "refused": 0}

    def options(count: int, *, quick: bool = False, resume: bool = False) -> Any:
        return frame.Options(count, quick, None, tmp_path, resume=resume)

    with pytest.raises(KeyboardInterrupt):
        seeds.over_seeds(options(4), "some", measure)
    assert asked == [0, 1]
    asked.clear()
    found = seeds.over_seeds(options(4, resume=True), "some", measure)
    assert asked == [2, 3]
    expected = {"auc": {"10 s": [0.5, 1.5, 2.5, 3.5], "1 s": [0, 1 / 3, 2 / 3, 1]}}
    assert found == expected | {"refused": [0] * 4}
    assert list(found["auc"]) == ["10 s", "1 s"], "columns keep their order"
    assert seeds.over_seeds(options(3, resume=True), "some", measure)["refused"] == [0] * 3
    with pytest.raises(SystemExit, match="2"):
        seeds.over_seeds(options(4, quick=True, resume=True), "some", measure)
    asked.clear()
    seeds.over_seeds(options(1), "some", measure)
    assert asked == [0], "without --resume nothing is taken over"


def test_arms_are_kept_each_and_of_one_stream(studies: Any, tmp_path: Path) -> None:
    frame, seeds = studies
    asked: list[tuple[int, str]] = []

    def run(stream: str, *, resume: bool, cut_at: int = 100) -> Any:
        kept = seeds.Kept(frame.Options(2, False, None, tmp_path, resume=resume), "some", stream)

        def measure(seed: int, arm: str) -> dict[str, Any]:
            if len(asked) == cut_at:
                raise KeyboardInterrupt
            asked.append((seed, arm))
            return {"like": {"auc": seed + len(arm)}}

        for seed in (0, 1):
            for arm in ("a", "bc"):
                kept.take(partial(measure, seed, arm), seed, arm)
        return kept

    with pytest.raises(KeyboardInterrupt):
        run("s", resume=False, cut_at=3)
    asked.clear()
    kept = run("s", resume=True)
    found = {arm: [run["like"]["auc"] for run in kept.runs(arm)] for arm in ("a", "bc", "none")}
    assert found == {"a": [1, 2], "bc": [2, 3], "none": []}
    assert asked == [(1, "bc")], "of the seed that was cut, the arm that was not measured"
    with pytest.raises(SystemExit, match="2"):
        run("another", resume=True)


def test_a_verdict_claims_nothing_inside_two_sd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(_FOLDER))
    from study_claims import verdict

    def row(mean: float, sd: float, seeds: int = 5) -> dict[str, Any]:
        return {"auc": {"mean": mean, "sd": sd, "seeds": seeds}, "seeds": seeds}

    arms = {"lightgbm": row(0.70, 0.001), "lightgbm, 7 leaves": row(0.72, 0.003)}
    peers = tuple(arms)
    arms |= {"dcn": row(0.731, 0.004), "stem": row(0.729, 0.004), "river": row(0.9, 0, 1)}
    said = verdict("like", arms, ("dcn", "stem"), peers)
    assert "1 of the 2 models of 3 seeds or more are above lightgbm, 7 leaves in AUC" in said
    assert "our best of them, dcn, by +0.0110 ± 0.005 (" in said
    assert "stem, by +0.0090 ± 0.005, inside 2 SD" in verdict("like", arms, ("stem",), peers)
    arms["dcn"] = row(0.731, 0.0, 2)
    said = verdict("like", arms, ("dcn", "stem"), peers)
    assert "0 of the 1 models" in said, "an SD of two runs says little"
    assert "of fewer than 3 seeds nothing is claimed" in verdict("like", arms, ("dcn",), peers)


def test_every_arm_reads_the_same_portions_of_a_log(studies: Any) -> None:
    frame, _ = studies
    from measuring import config_of
    from study_log import joined

    from runtime.sources.simulated import SimulatedTraffic

    source = SimulatedTraffic(start_ms=1_700_006_400_000, seed=1, rate=100.0, faults=False)

    def arm(model: str) -> Any:
        flags = {"join__policy": "correct", "trainer__cut_by": "count"}
        flags |= {"trainer__batch_samples_max": 64, "model__name": model}
        return config_of(source.config_values(), **flags)

    log = joined(source, arm("lr"), 300)
    first = frame.run_trainer(log, arm("lr"))
    made = log.portions
    frame.run_trainer(log, arm("multi_embedding"))
    assert log.portions is made, "made once for the slots of all"
    again = frame.run_trainer(log, arm("lr"))
    assert len(first) == 300
    assert all((first[i] == again[i]).all() for i in first), (
        "no arm changed what the next one reads"
    )

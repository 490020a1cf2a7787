"""What the studies share: a run that was cut goes on with the seeds that it has."""

from __future__ import annotations

from collections.abc import Iterator
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

"""The one config file: checked, explained, and inferred from a person's own events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runtime.config_file import write_config
from runtime.config_init import DAY_MS, render_config
from runtime.inference import read_findings
from runtime.sources.simulated import SimulatedTraffic
from settings.config import Config
from settings.load import ConfigError, load_config

START_MS = 1_700_000_000_000


def _load(text: str, tmp_path: Path, **changes: Any) -> Config:
    file = tmp_path / "c.toml"
    file.write_text(text)
    return load_config(file, **({"env": {}} | changes)).config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[join]\npolcy = 'wait'", "join.polcy: unknown key; did you mean 'policy'?"),
        (
            "[join]\npolicy = 'wiat'",
            "expected 'wait' or 'correct', got 'wiat'; did you mean 'wait'",
        ),
        ("[kinds.click]\nwindow = 24", "expected a duration such as .*got 24"),
        ("[slots.v]\ntype = 'vector'", "needs dim"),
        ("[slots.user_id]\ntype = 'categorical'", "every impression's own fields"),
        ("[trainer]\nthreads = 0", "trainer.threads: .* got 0"),
        ("[optimizer]\nsparse = 'adamm'", "expected .*got 'adamm'; did you mean 'adam'"),
        ("[optimizer.sets.shared]\nlr = 1", "optimizer.sets.shared.lr: unknown key"),
        ("[store]\neviction = 'lruu'", "got 'lruu'; did you mean 'lru'"),
        ("[join", "not readable as TOML"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    text: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        _load(text, tmp_path)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[trainer]\nseed = 1\nthreads = 1\nbatch_samples_max = 7\n")
    loaded = load_config(
        file,
        env={"HEADWATER__TRAINER__SEED": "2", "HEADWATER__TRAINER__THREADS": "2"},
        flags={"trainer.seed": 3},
    )
    origins = {name: (value, origin) for name, value, origin in loaded.values()}
    assert origins["trainer.seed"] == (3, "flag")
    assert origins["trainer.threads"] == (2, "environment HEADWATER__TRAINER__THREADS")
    assert origins["trainer.batch_samples_max"] == (7, str(file))
    assert origins["trainer.device"] == ("cpu", "default")


def test_a_written_config_reads_back_the_same(tmp_path: Path) -> None:
    text = (
        "domains = ['a']\n[kinds.buy]\nwindow = '90s'\n[slots.v]\ntype = 'vector'\ndim = 3\n"
        "[kafka.extra]\n'security.protocol' = 'PLAINTEXT'\n"
    )
    config = _load(text, tmp_path)
    write_config(config, tmp_path / "again.toml", comment="two\nlines")
    assert load_config(tmp_path / "again.toml", env={}).config == config


def _infer(
    tmp_path: Path, impressions: list[Any], conversions: list[Any], **changes: Any
) -> Config:
    files = {"impressions": impressions, "conversions": conversions}
    for name, events in files.items():
        lines = [e if isinstance(e, str) else json.dumps(e) for e in events]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    found = read_findings(tmp_path / "impressions", tmp_path / "conversions")
    arguments = {"windows_ms": {}, "policy": "wait", "model": "lfm4ads"} | changes
    return _load(render_config(found, **arguments), tmp_path)


def _impression(n: int, features: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "impression_id": f"i{n}",
        "event_ms": START_MS + 1000 * n,
        "user_id": f"u{n % 5}",
        "item_id": f"m{n % 7}",
        "domain": "feed",
        "features": features,
    } | changes


def _conversion(n: int, **changes: Any) -> dict[str, Any]:
    return {
        "conversion_id": f"c{n}",
        "impression_id": None,
        "event_ms": START_MS + 1000 * n,
        "user_id": f"u{n % 5}",
        "item_id": f"m{n % 7}",
        "kind": "click",
        "value": None,
    } | changes


def test_slots_get_their_types_and_sides(tmp_path: Path) -> None:
    impressions = [
        _impression(
            n,
            {
                "gender": "fm"[n % 5 % 2],  # the same within each user
                "brand": f"b{n % 7 % 3}",  # the same within each item
                "place": f"p{n % 4}",
                "user_age": 20 + n,  # by its name, though it changes
                "ad_size": [1.0 * n, 2],
                "tags": ["x", "y"][: n % 3],
                "history": [{"item_id": "m1", "event_ms": 1}],
                "odd name": "x",
                "ragged": [0.5] * (n % 3 + 1),
                "nested": {"a": 1},
                "always": "one",
                "nothing": None,
            },
        )
        for n in range(70)
    ]
    config = _infer(tmp_path, impressions, [_conversion(1)])
    assert {name: (slot.side, slot.type) for name, slot in config.slots.items()} == {
        "gender": ("user", "categorical"),
        "brand": ("item", "categorical"),
        "place": ("context", "categorical"),
        "user_age": ("user", "numeric"),
        "ad_size": ("item", "vector"),
        "tags": ("context", "multi"),
        "history": ("user", "sequence"),
        "always": ("context", "categorical"),
    }
    assert config.slots["ad_size"].dim == 2


def test_bad_lines_and_the_year_2099_are_no_evidence(tmp_path: Path) -> None:
    impressions: list[Any] = [_impression(n, {"a": "x"}) for n in range(20)]
    impressions += ["{", "null", "\x00", _impression(9, {"a": "x"}, event_ms=4_070_908_800_000)]
    config = _infer(tmp_path, impressions, [_conversion(1), _conversion(2, kind=7)])
    assert config.events.future_bound == DAY_MS
    assert list(config.kinds) == ["click"]
    assert config.kinds["click"].window == DAY_MS


def test_the_future_bound_covers_the_longest_silence(tmp_path: Path) -> None:
    silence_ms = 5 * DAY_MS
    impressions = [_impression(n, {"a": "x"}, event_ms=START_MS + n * silence_ms) for n in range(9)]
    config = _infer(tmp_path, impressions, [_conversion(1)])
    assert config.events.future_bound >= 2 * silence_ms


def test_windows_policy_and_domains_arrive(tmp_path: Path) -> None:
    impressions = [_impression(n, {}, domain=("feed", "search", "9")[n % 3]) for n in range(9)]
    config = _infer(
        tmp_path, impressions, [_conversion(1)], windows_ms={"click": 1500}, policy="correct"
    )
    assert config.kinds["click"].window == 1500
    assert config.join.policy == "correct"
    assert set(config.domains) == {"feed", "search"}


def test_files_without_events_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not one line is an impression"):
        _infer(tmp_path, ["nonsense"], [_conversion(1)])
    with pytest.raises(ConfigError, match="not one line is a conversion"):
        _infer(tmp_path, [_impression(1, {})], ["nonsense"])


@pytest.mark.slow
def test_the_simulators_own_config_is_found_again(tmp_path: Path) -> None:
    source = SimulatedTraffic(start_ms=START_MS, impressions_max=3_000)
    files = {name: (tmp_path / name).open("wb") for name in ("impressions", "conversions")}
    for event in source.events():
        files[event.stream].write(event.line + b"\n")
    for file in files.values():
        file.close()
    found = read_findings(tmp_path / "impressions", tmp_path / "conversions")
    text = render_config(found, windows_ms={}, policy="wait", model="lfm4ads")
    config = _load(text, tmp_path)
    known = source.config_values()
    assert set(config.kinds) == set(known["kinds"])
    assert set(config.domains) == set(known["domains"])
    for name, slot in known["slots"].items():
        assert (config.slots[name].side, config.slots[name].type) == (slot["side"], slot["type"])
    assert config.slots["item_vector"].dim == known["slots"]["item_vector"]["dim"]

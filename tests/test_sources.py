"""Traffic: the simulator's truth is true and repeatable, and the real logs come as published."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import pytest

from runtime.demo import demo_config
from runtime.sources.catalog import SourceError, open_source
from runtime.sources.deskdrop import DeskdropTraffic
from runtime.sources.kuairand import KuairandTraffic
from runtime.sources.simulated import SimulatedTraffic
from runtime.sources.traffic import Source, TrafficEvent
from runtime.sources.world import DOMAINS, KINDS
from tests.conftest import data_file
from topics.conversion import decode_conversion
from topics.errors import RecordInvalid
from topics.impression import decode_impression

START_MS = 1_700_000_000_000
DESKDROP = "deskdrop_users_interactions.csv.zip"
KUAIRAND = "kuairand27k_extract.tsv.xz"


def _events(**changes: int | bool) -> list[TrafficEvent]:
    arguments = {"start_ms": START_MS, "impressions_max": 20_000, "faults": False} | changes
    return list(SimulatedTraffic(**arguments).events())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def honest() -> list[TrafficEvent]:
    return _events()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    few = {"impressions_max": 500, "faults": True}
    assert _events(**few) == _events(**few)
    assert _events(**few) != _events(**few, seed=1)


def test_interests_that_stop_change_the_probabilities_from_then_on_and_nothing_else() -> None:
    few = {"impressions_max": 2_000, "drift_ms": 20_000}  # 200 a second: 10 s
    middle = START_MS + 5_000
    stopped, drifting = (
        [orjson.loads(e.truth) for e in _events(**few, **more) if e.truth is not None]
        for more in ({"drift_until_ms": middle}, {})
    )
    assert [t["impression_id"] for t in stopped] == [t["impression_id"] for t in drifting]
    assert [t["event_ms"] for t in stopped] == [t["event_ms"] for t in drifting]
    same = [
        a["probabilities"] == b["probabilities"] for a, b in zip(stopped, drifting, strict=True)
    ]
    times = [t["event_ms"] for t in drifting]
    chunk_ms = 2_000  # interests change once per 256 impressions
    assert all(s for s, at in zip(same, times, strict=True) if at < middle - chunk_ms)
    assert not any(s for s, at in zip(same, times, strict=True) if at > middle + chunk_ms)


@pytest.mark.slow
def test_rates_agree_with_the_true_probabilities(honest: list[TrafficEvent]) -> None:
    truth = {}
    windows = {name: kind.window_ms for name, kind in KINDS.items()}
    converted: Counter[tuple[str, str]] = Counter()
    for event in honest:
        if event.truth is not None:
            known = orjson.loads(event.truth)
            truth[known["impression_id"]] = known
        else:
            conversion = orjson.loads(event.line)
            impression_id, kind = conversion["conversion_id"].split("-")
            delay_ms = conversion["event_ms"] - truth[impression_id]["event_ms"]
            converted[impression_id, kind] += 0 <= delay_ms <= windows[kind]
    assert len(truth) == 20_000
    for kind in KINDS:
        p = np.array([known["probabilities"][kind] for known in truth.values()])
        y = np.array([converted[impression_id, kind] for impression_id in truth])
        assert set(y.tolist()) <= {0, 1}
        standard_error = np.sqrt((p * (1 - p)).sum())
        assert abs(y.sum() - p.sum()) < 3 * standard_error
        high = p > np.median(p)  # and not only on average
        assert abs((y - p)[high].sum()) < 3 * np.sqrt((p * (1 - p))[high].sum())


@pytest.mark.slow
def test_a_conversion_without_a_name_has_its_own_impression_as_last_touch(
    honest: list[TrafficEvent],
) -> None:
    newest: dict[tuple[str, str], str] = {}
    unnamed = 0
    for event in honest:
        line = orjson.loads(event.line)
        pair = (line["user_id"], line["item_id"])
        if event.stream == "impressions":
            newest[pair] = line["impression_id"]
        elif line["impression_id"] is None:
            unnamed += 1
            assert newest[pair] == line["conversion_id"].split("-")[0]
    assert unnamed > 500


@pytest.mark.slow
def test_domains_differ_in_size_items_arrive_and_slots_are_those_of_the_config(
    honest: list[TrafficEvent],
) -> None:
    impressions = [decode_impression(e.line) for e in honest if e.stream == "impressions"]
    domains = Counter(impression.domain for impression in impressions)
    assert [name for name, _ in domains.most_common()] == list(DOMAINS)
    assert domains["feed"] > 100 * domains["marketplace"] > 0
    early = {impression.item_id for impression in impressions[:5_000]}
    assert {impression.item_id for impression in impressions[-5_000:]} - early
    slots = demo_config(SimulatedTraffic(start_ms=START_MS)).slots
    seen = Counter(slot for impression in impressions for slot in impression.features)
    assert set(seen) == set(slots)
    dim = slots["item_vector"].dim
    assert all(len(impression.features["item_vector"]) == dim for impression in impressions)


@pytest.mark.slow
def test_with_faults_every_honest_event_still_comes_and_broken_ones_are_undecodable() -> None:
    honest = Counter(event.line for event in _events(impressions_max=5_000))
    untidy = Counter(event.line for event in _events(impressions_max=5_000, faults=True))
    assert not honest - untidy
    extra = untidy - honest
    broken = duplicates = ghosts = 0
    for line, count in extra.items():
        try:
            decode_impression(line) if b'"domain"' in line else decode_conversion(line)
        except RecordInvalid:
            broken += count
            continue
        if line in honest:
            duplicates += count
        else:
            ghosts += count
    assert broken > 5 and duplicates > 10 and ghosts > 10


def test_events_come_by_due_time() -> None:
    due = [event.due_ms for event in _events(impressions_max=2_000, faults=True)]
    assert due == sorted(due)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("deskdrp", None, "expected one of simulated, deskdrop, kuairand; did you mean 'deskdrop'"),
        ("deskdrop", None, "needs its log: --data PATH"),
        ("kuairand", Path("nowhere.tsv"), "nowhere.tsv: no such file"),
        ("simulated", Path("x"), "reads no file"),
    ],
)
def test_a_wrong_source_is_named(name: str, data: Path | None, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(name, data)


def test_a_file_that_is_not_the_log_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("a,b\n1,2\n")
    for name in ("deskdrop", "kuairand"):
        with pytest.raises(SourceError, match="not readable as"):
            open_source(name, wrong)


@pytest.mark.data
@pytest.mark.slow
def test_deskdrop_comes_in_time_order_with_every_row_its_own_event() -> None:
    source = DeskdropTraffic(data_file(DESKDROP))
    kinds: Counter[str] = Counter()
    ids = set()
    for event in _checked(source):
        if event.stream == "impressions":
            impression = decode_impression(event.line)
            ids.add(impression.impression_id)
            assert impression.domain in demo_config(source).domains
        else:
            conversion = decode_conversion(event.line)
            ids.add(conversion.conversion_id)
            kinds[conversion.kind] += 1
            assert conversion.impression_id is None
    assert len(ids) == 72_312
    assert kinds == {"like": 5745, "bookmark": 2463, "follow": 1407, "comment": 1611}


@pytest.mark.data
@pytest.mark.slow
def test_kuairand_names_impressions_and_never_tells_outcomes_as_features() -> None:
    source = KuairandTraffic(data_file(KUAIRAND))
    impressions = 0
    slots = set()
    for event in _checked(source):
        if event.stream == "impressions":
            impressions += 1
            slots |= set(decode_impression(event.line).features)
        else:
            assert decode_conversion(event.line).impression_id is not None
    assert impressions == 41_828
    config = demo_config(source)
    assert slots <= set(config.slots)
    outcomes = ("label", "is_click", "play_time_ms", "comment_stay_time")
    assert not slots & set(outcomes) and not set(config.kinds) & set(outcomes)


def _checked(source: Source) -> list[TrafficEvent]:
    """Its events, by time, the same twice."""
    events = list(source.events())
    assert [e.due_ms for e in events] == sorted(e.due_ms for e in events)
    assert list(islice(source.events(), 1000)) == events[:1000]
    return events

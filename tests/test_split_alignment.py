"""Which partitions a reader holds back: in order of event time, and never for nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pair_drive import AlignmentDrive, PairDrive

AHEAD = 1_000
NEVER = 2**62
NOW = 10**12
SILENT_MS = 200
BACKLOG_MS = 10_000


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AlignmentDrive]:
    found = PairDrive(tmp_path_factory.mktemp("classes")).alignment()
    yield found
    found.close()


def test_who_is_ahead_is_held_until_the_slowest_is_near(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=NEVER, bounded=True)
    drive.note("slow", 0, 0)
    drive.note("near", AHEAD, 0)
    drive.note("far", AHEAD + 1, 0)
    assert drive.change(NOW) == ({"far"}, set(), True)
    assert drive.change(NOW + 1) == (set(), set(), True)
    drive.note("slow", 1, 0)
    assert drive.change(NOW + 2) == (set(), {"far"}, False)


def test_a_record_from_the_future_moves_no_clock(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=NEVER, bounded=True)
    drive.note("slow", 0, 0)
    drive.note("other", 1, 0)
    drive.note("other", 10**15, 0, clocked=False)
    assert drive.change(NOW) == (set(), set(), False)


def test_who_brings_nothing_is_not_waited_for(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=NEVER, bounded=True)
    drive.note("ended", 0, 0)
    drive.note("far", AHEAD + 1, 0)
    assert drive.change(NOW) == ({"far"}, set(), True)
    assert drive.change(NOW + SILENT_MS - 1) == (set(), set(), True)
    assert drive.change(NOW + SILENT_MS) == (set(), {"far"}, False)


def test_who_has_brought_nothing_yet_may_be_the_slowest(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=NEVER, bounded=True)
    drive.expect("first")
    drive.expect("second")
    assert drive.change(NOW) == (set(), set(), False)
    drive.note("first", 0, 0)
    assert drive.change(NOW + 5_000) == ({"first"}, set(), True)
    assert drive.change(NOW + 5_000 + SILENT_MS - 1) == (set(), set(), True)
    drive.note("second", 9 * AHEAD, 0)
    assert drive.change(NOW + 5_000 + SILENT_MS) == ({"second"}, {"first"}, True)


def test_an_empty_partition_is_waited_for_once(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=NEVER, bounded=True)
    drive.expect("full")
    drive.expect("empty")
    drive.note("full", 0, 0)
    assert drive.change(NOW) == ({"full"}, set(), True)
    assert drive.change(NOW + SILENT_MS) == (set(), {"full"}, False)
    drive.note("full", AHEAD, 0)
    assert drive.change(NOW + SILENT_MS + 1) == (set(), set(), False)


def test_at_the_head_of_the_log_nothing_is_expected(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=NEVER, bounded=False)
    drive.expect("full")
    drive.expect("empty")
    drive.note("full", 0, NOW - BACKLOG_MS)
    assert drive.change(NOW) == (set(), set(), False)
    drive.note("full", 1, NOW - BACKLOG_MS - 1)
    assert drive.change(NOW) == ({"full"}, set(), True)


def test_a_partition_added_at_the_head_of_the_log_holds_nobody(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=NEVER, bounded=False)
    drive.note("quiet", 0, NOW)
    assert drive.change(NOW) == (set(), set(), False)
    later = NOW + 2 * BACKLOG_MS
    drive.note("live", 9 * AHEAD, later)
    drive.expect("added")
    assert drive.change(later) == (set(), set(), False)


def test_an_ended_partition_is_forgotten_at_once(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=NEVER, bounded=True)
    drive.note("slow", 0, 0)
    drive.note("far", AHEAD + 1, 0)
    drive.note("farthest", 3 * AHEAD, 0)
    assert drive.change(NOW) == ({"far", "farthest"}, set(), True)
    drive.remove("slow")
    assert drive.change(NOW + 1) == (set(), {"far"}, True)
    drive.remove("farthest")
    assert drive.change(NOW + 2) == (set(), set(), False)


def test_at_the_head_of_the_log_nobody_is_held(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=NEVER, bounded=False)
    drive.note("slow", 0, NOW - BACKLOG_MS)
    drive.note("far", AHEAD + 1, NOW)
    assert drive.change(NOW) == (set(), set(), False)
    drive.note("slow", 0, NOW - BACKLOG_MS)
    assert drive.change(NOW + 1) == ({"far"}, set(), True), "now it is a backlog"
    drive.note("slow", 1, NOW)
    assert drive.change(NOW + 2) == (set(), {"far"}, False)


def test_nobody_is_held_for_so_long_that_it_passes_for_idle(drive: AlignmentDrive) -> None:
    drive.start(ahead=AHEAD, held_max=2_000, bounded=False)
    drive.note("far", 9 * AHEAD, 0)
    for ms in range(0, 2_001, 100):
        drive.note("slow", 0, 0)
        assert drive.change(NOW + ms) == ({"far"} if ms == 0 else set(), set(), True)
    drive.note("slow", 0, 0)
    assert drive.change(NOW + 2_001) == (set(), {"far"}, False)
    drive.note("slow", 0, 0)
    assert drive.change(NOW + 2_002) == (set(), set(), False), "until it has brought something"
    drive.note("far", 9 * AHEAD, 0)
    assert drive.change(NOW + 2_003) == ({"far"}, set(), True)


_partitions = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 700), st.booleans()), min_size=2, max_size=6
)


@settings(deadline=None)
@given(partitions=_partitions, batch=st.integers(1, 40), ahead=st.integers(0, 5_000))
def test_a_backlog_is_read_whole_and_in_order(
    drive: AlignmentDrive, partitions: list[tuple[int, int, bool]], batch: int, ahead: int
) -> None:
    """(records, milliseconds between two, whether its end is told) of each partition."""
    drive.start(ahead=ahead, held_max=NEVER, bounded=True)
    left = {str(n): records for n, (records, _, _) in enumerate(partitions)}
    step = {str(n): gap for n, (_, gap, _) in enumerate(partitions)}
    told = {str(n) for n, (_, _, told) in enumerate(partitions) if told}
    read = dict.fromkeys(left, 0)
    held: set[str] = set()
    now = NOW
    turns = 0
    while any(left.values()):
        turns += 1
        assert turns < 10_000, f"stands still: {left} left, {held} held"
        for split in [name for name in left if left[name] and name not in held]:
            for _ in range(min(batch, left[split])):
                read[split] += 1
                left[split] -= 1
                drive.note(split, read[split] * step[split], 0)
            if not left[split] and split in told:
                drive.remove(split)
            now += 1
        now += 10
        hold, release, any_held = drive.change(now)
        assert not hold & held and release <= held
        held = (held | hold) - release
        assert any_held == bool(held)
        clock = {name: read[name] * step[name] for name in left if left[name] and read[name]}
        for split in clock.keys() & held:
            assert clock[split] - ahead > min(
                read[name] * step[name] for name in left if read[name]
            ), f"{split} is held for nothing"
        if clock:
            slowest = min(clock, key=lambda name: clock[name])
            assert slowest not in held or len(clock) < len([n for n in left if read[n]])
            for split, at in clock.items():
                assert split in held or at - ahead <= clock[slowest], f"{split} is not held"

"""Portions: the same bytes whoever makes them, in the order of the log, and a child that dies."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sample_stream import make_config, make_samples, write_samples
from trainer.batch import build_batch
from trainer.errors import FeedDied, TrainerError
from trainer.feed import Feed, PortionSource, make_portion
from trainer.feed_process import FeedProcess, file_order
from trainer.pieces import join_portions
from trainer.portion import Portion, dump_portion, load_portion
from trainer.slots import plan_slots
from trainer.source import FileSource, SourceRecord

CONFIG = make_config()
PLAN = plan_slots(CONFIG)


def _bytes(portion: Portion) -> bytes:
    return b"".join(bytes(part) for part in dump_portion(portion))


def _all(source: PortionSource) -> list[Portion]:
    found = []
    while True:
        portion = source.take(lambda: False)
        if portion is not None:
            found.append(portion)
        elif source.at_end:
            return found


def test_a_portion_comes_back_from_its_bytes() -> None:
    samples = make_samples(70, correct=True)
    records = [SourceRecord(s, "samples", n % 2, n, joined_ms=n) for n, s in enumerate(samples)]
    records.insert(3, SourceRecord(None, "samples", 1, 999, watermark_ms=7, rejected="no JSON"))
    portion = make_portion(records, PLAN)
    raw = np.frombuffer(_bytes(portion), np.uint8)
    again = load_portion(raw, PLAN)
    assert _bytes(again) == raw.tobytes()
    assert again.batch is not None
    assert again.batch.impressions == [s.impression_id.encode() for s in samples]
    last = len(samples) - 1
    assert again.offsets == {"samples": {last % 2: last + 1, (last - 1) % 2: last}}
    assert again.watermark_ms == 7 and again.refused == ["samples[1]@999: no JSON"]
    assert again.joined_ms.tolist() == list(range(len(samples)))


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, float("nan")]), min_size=6, max_size=6))
def test_an_array_of_one_number_comes_back_to_the_bit(weights: list[float]) -> None:
    portion = make_portion([SourceRecord(s, "t", 0, 0) for s in make_samples(6)], PLAN)
    assert portion.batch is not None
    portion.batch.log_keep_rate = np.asarray(weights, np.float32)
    again = load_portion(np.frombuffer(_bytes(portion), np.uint8), PLAN)
    assert again.batch is not None
    for name in ("log_keep_rate", "labels", "state", "kept", "event_ms"):
        before, after = getattr(portion.batch, name), getattr(again.batch, name)
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        assert after.tobytes() == before.tobytes()


def test_an_array_of_one_number_is_not_sent() -> None:
    one, many = (
        make_portion([SourceRecord(s, "t", 0, 0) for s in make_samples(n)], PLAN) for n in (8, 800)
    )
    for portion in (one, many):
        assert portion.batch is not None
        portion.joined_ms = np.full(len(portion.batch), 7)
    told = [len(_bytes(portion)) for portion in (one, many)]
    for portion in (one, many):
        portion.joined_ms = np.arange(len(portion.joined_ms))
    assert [len(_bytes(p)) - n for p, n in zip((one, many), told, strict=True)] == pytest.approx(
        [8 * len(p.joined_ms) for p in (one, many)], abs=32
    )


def test_a_portion_without_samples_still_moves_the_offsets() -> None:
    portion = make_portion([SourceRecord(None, "t", 0, 4, rejected="no")], PLAN)
    again = load_portion(np.frombuffer(_bytes(portion), np.uint8), PLAN)
    assert again.batch is None and again.offsets == {"t": {0: 5}}


def test_taking_rows_is_building_from_them() -> None:
    samples = make_samples(90, correct=True)
    chosen = [0, 3, 4, 50, len(samples) - 1]
    taken = build_batch(samples, PLAN).take(np.asarray(chosen))
    built = build_batch([samples[b] for b in chosen], PLAN)
    taken.rejected = built.rejected
    empty = (np.zeros(len(chosen), np.int64), {}, 0, [])
    assert _bytes(Portion(taken, *empty)) == _bytes(Portion(built, *empty))


@given(st.lists(st.integers(0, 95), max_size=6), st.booleans())
def test_a_portion_read_in_pieces_is_the_portion_read_at_once(cuts: list[int], wild: bool) -> None:
    samples = list(make_samples(90, correct=True))
    if wild:  # values that a slot cannot use, and a slot that nobody knows
        for n in (2, 40, 41):
            odd = {**samples[n].features, "unheard of": 1, next(iter(samples[n].features)): {}}
            samples[n] = msgspec.structs.replace(samples[n], features=odd)
    records = [SourceRecord(s, "samples", n % 3, n, joined_ms=n) for n, s in enumerate(samples)]
    records.insert(3, SourceRecord(None, "samples", 1, 999, watermark_ms=7, rejected="no JSON"))
    records += [SourceRecord(None, "samples", 0, 1000 + n, rejected="no") for n in range(15)]
    ends = sorted({*cuts, len(records)})
    pieces: list[Portion] = []
    for start, end in itertools.pairwise([0, *ends]):
        if end > start:
            told = sum(len(piece.refused) for piece in pieces)
            pieces.append(make_portion(records[start:end], PLAN, told))
    whole, joined = make_portion(records, PLAN), join_portions(pieces)
    assert whole.batch is not None and joined.batch is not None
    assert joined.batch.rejected == whole.batch.rejected
    assert bool(whole.batch.rejected) == wild
    joined.batch.rejected = whole.batch.rejected  # counted in another order
    assert _bytes(joined) == _bytes(whole)


@pytest.mark.slow
def test_the_process_makes_the_portions_of_the_feed(tmp_path: Path) -> None:
    file = write_samples(make_samples(500, correct=True), tmp_path / "s.jsonl")
    file.write_bytes(file.read_bytes() + b"{nonsense\n")
    inline = Feed(FileSource(file, {}), PLAN, CONFIG.trainer)
    here = _all(inline)
    inline.close()
    process = FeedProcess(file_order(CONFIG, file, {}), PLAN, lambda: False)
    there = _all(process)
    process.close()
    assert [_bytes(p) for p in there] == [_bytes(p) for p in here] and len(here) > 5
    topic = next(iter(here[1].offsets))
    rest = FeedProcess(file_order(CONFIG, file, here[1].offsets), PLAN, lambda: False)
    assert _bytes(_all(rest)[0]) == _bytes(here[2]), f"continued elsewhere than in {topic}"
    rest.close()


@pytest.mark.slow
@pytest.mark.kill
def test_a_feed_that_is_killed_is_an_error_and_one_that_fails_says_why(tmp_path: Path) -> None:
    file = write_samples(make_samples(3000), tmp_path / "s.jsonl")
    process = FeedProcess(file_order(CONFIG, file, {}), PLAN, lambda: False)
    try:
        os.kill(process._child.pid, signal.SIGKILL)
        process._child.wait()
        with pytest.raises(FeedDied, match="exit code=`-9`"):
            for _ in range(50):
                process.take(lambda: False)
    finally:
        process.close()
    with pytest.raises(TrainerError, match=r"FileNotFoundError: .*no\.jsonl"):
        FeedProcess(file_order(CONFIG, tmp_path / "no.jsonl", {}), PLAN, lambda: False)

"""Work beside the step: in order, one at a time, all of it before `finish`, errors told."""

from __future__ import annotations

import threading

import pytest

from trainer.aside import Aside


def test_what_is_held_is_done_in_order_and_before_finish_returns() -> None:
    aside, done = Aside(), []
    for n in range(50):
        aside.hold(lambda n=n: done.append((n, threading.current_thread().name)))
        assert [k for k, _ in done] == list(range(n))  # the one before, and not this one
        if n % 2:
            aside.start()
    aside.finish()
    assert [n for n, _ in done] == list(range(50))
    assert all(name.startswith("aside") == bool(n % 2) for n, name in done)
    aside.close()


def test_an_error_is_raised_by_finish_and_what_is_held_is_dropped_by_close() -> None:
    def fail() -> None:
        raise ValueError("told")

    aside, done = Aside(), []
    aside.hold(fail)
    aside.start()
    with pytest.raises(ValueError, match="told"):
        aside.finish()
    aside.finish()
    aside.hold(lambda: done.append(1))
    aside.close()
    aside.finish()
    assert not done

"""A skipped test has proven nothing: every reason to skip one is listed here, and any other fails
the run. A plugin of pytest, loaded by conftest.py."""

from __future__ import annotations

import re
from collections import Counter

import pytest

EXPECTED = (
    "make prove",  # the long counts
    "no GPU on this machine",
    "the real logs are not part of the repository",
    "[Pp]rometheus .*(not installed|not on PATH|not found)",
    "no file system can be mounted here|no private mounts here",
    "no Docker engine",
    "could not import '(redis|feast|qdrant_client)'",
    "(redis-server|kcat|chromium) .*(not installed|not on PATH|not found)",
)
_skipped: Counter[str] = Counter()


def is_expected(reason: str) -> bool:
    """Whether a skip for `reason` is one of those that are known and accepted."""
    return any(re.search(pattern, reason) for pattern in EXPECTED)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1


def unexpected() -> list[str]:
    """Reasons of skips that nobody expected, with their counts."""
    return [f"{count} x {reason}" for reason, count in _skipped.items() if not is_expected(reason)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if unexpected() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in unexpected():
        terminalreporter.write_line(
            f"unexpected skip, which fails the run (tests/skips.py): {line}", red=True
        )

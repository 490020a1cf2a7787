"""Verdicts on their way to Kafka: a checkpoint has all before it, a failure nothing behind it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.java_classes import compiled

Drive = Callable[..., str]


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Drive:
    classpath = compiled(tmp_path_factory.mktemp("classes"), "WriterDrive")

    def run(*arguments: object) -> str:
        command = ["java", "-cp", classpath, "dev.headwater.join.WriterDrive"]
        done = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("seed", range(3))
def test_a_checkpoint_has_all_before_it_and_no_more(drive: Drive, seed: int) -> None:
    assert int(drive("many", seed)) > 500_000


@pytest.mark.parametrize("at", [0, 1, 5000, 9000])
def test_nothing_is_written_or_committed_after_a_failure(drive: Drive, at: int) -> None:
    assert drive("fails", at) == f"{at} verdicts: not written to Kafka: broken"


def test_buffers_are_bounded_by_bytes(drive: Drive) -> None:
    assert 9 <= int(drive("large")) <= 17


def test_a_verdict_does_not_wait_for_others(drive: Drive) -> None:
    assert int(drive("idle")) == 3


def test_it_closes_while_its_writer_stands_still(drive: Drive) -> None:
    assert int(drive("close")) == 0

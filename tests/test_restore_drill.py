"""The drill with the real trainer over Kafka: damage, restore, relearn; the bytes of no damage.

The trainer reads samples from the broker, publishes to it, and takes checkpoints with copies. Its
newest copy is damaged and its store lost a table; `headwater store restore` falls back to the copy
before, and the trainer relearns the rest from the log without sending a version twice.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedding_store.checkpoints import list_checkpoints
from settings.config import Config
from tests import test_trainer_kill as killing
from tests.knobs import PROVE
from topics.lag import committed_offsets
from topics.names import MANIFEST, SAMPLES, trainer_group
from topics.scan import end_offsets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kafka,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PROVE, reason="a minute or two: make prove"),
]


def _with_copies(path: Path, copies: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f'[checkpoints]\nevery = "200ms"\nkept = 4\ncopy_to = "{copies}"\n')


def _headwater(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime.cli", "store", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_a_damaged_store_is_restored_and_relearns_from_kafka(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    plain, copied = tmp_path / "plain.toml", tmp_path / "copied.toml"
    whole, lost = tmp_path / "store-a", tmp_path / "store-b"
    config_a = killing._write_config(plain, f"{prefix}-a")
    killing._write_log(config_a, kafka)
    killing._run_to_end(plain, kafka, whole)
    config_b = killing._write_config(copied, f"{prefix}-b")
    _with_copies(copied, tmp_path / "copies")
    killing._write_log(config_b, kafka)

    _run_until_copied(config_b, copied, kafka, lost, tmp_path / "copies")
    table = max((lost / "rocks").glob("*.sst"))
    table.write_bytes(table.read_bytes()[:-1])
    newest, before = list_checkpoints(tmp_path / "copies")[:2]
    table = max((newest.path / "rocks").glob("*.sst"))
    damaged = bytearray(table.read_bytes())
    damaged[len(damaged) // 3] ^= 4
    table.write_bytes(damaged)

    found = _headwater("verify", "--store", str(newest.path))
    assert found.returncode == 1 and f"DAMAGED rocks/{table.name}" in found.stdout
    arguments = ("restore", "--from", str(tmp_path / "copies"), "--store", str(lost), "--json")
    tried, taken = _headwater(*arguments, "--drill"), _headwater(*arguments)
    for ran in (tried, taken):
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)
        assert told["checkpoint"] == str(before.path)
        assert [skipped["checkpoint"] for skipped in told["skipped"]] == [str(newest.path)]

    versions = end_offsets(config_b, kafka, [MANIFEST])
    killing._run_to_end(copied, kafka, lost)
    expected = killing._store_digest(config_a, whole)
    assert int(expected["rows"]) > 1000
    assert killing._store_digest(config_b, lost) == expected
    assert killing._published_digest(config_b, kafka) == killing._published_digest(config_a, kafka)
    assert versions != end_offsets(config_b, kafka, [MANIFEST]), "nothing was left to publish"


def _run_until_copied(
    config: Config, path: Path, bootstrap: str, store: Path, copies: Path
) -> None:
    """Kill the trainer once it has three copies and has learnt half of the log."""
    half = end_offsets(config, bootstrap, [SAMPLES])[SAMPLES, 0] // 2
    committed = committed_offsets(config, bootstrap, trainer_group(config), [SAMPLES])
    trainer = killing._start(path, bootstrap, store)
    while committed().get((SAMPLES, 0), 0) < half or len(list_checkpoints(copies)) < 3:
        assert trainer.poll() is None, f"it ended by itself: {trainer.communicate()[1]}"
        time.sleep(0.01)
    trainer.kill()
    trainer.communicate()
    for unfinished in copies.glob(".*"):
        shutil.rmtree(unfinished)

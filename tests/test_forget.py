"""A forgotten user is nowhere that anyone learns or reads, and stays away after a restore."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from downstream.reader import RepresentationReader
from embedding_store.keys import row_keys
from embedding_store.store import EmbeddingStore
from tests.live_trainer import LiveTrainer
from tests.sample_stream import make_samples
from tests.test_trainer_stream import _produce
from topics.names import SAMPLES
from topics.scan import read_to_end
from trainer.step import row_layout


def _spaces_naming(trainer: LiveTrainer, user: str) -> set[str]:
    """The spaces of the store with a record that names the user, and `rows`."""
    with EmbeddingStore.open(
        trainer.store, row_layout(trainer.config), cache_rows_max=4096, owner="test"
    ) as store:
        found = {"rows"} if store.peek(row_keys("user_id", [user]), "shared")[1].any() else set()
        for space in ("entity", "entity_row", "reservoir", "published", "touched", "outbox"):
            for key, value in store.scan(space):
                if user.encode() in key + value:
                    found.add(space)
        return found


@pytest.mark.kafka
@pytest.mark.slow
def test_a_forgotten_user_is_gone_from_store_and_readers_and_stays_away(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    user = "user-to-forget"
    samples = [
        sample if n % 10 else msgspec.structs.replace(sample, user_id=user)
        for n, sample in enumerate(make_samples(420))
    ]
    trainer = LiveTrainer(tmp_path, kafka, prefix, publish={"vectors_max": 1000})
    with trainer:
        _produce(kafka, trainer.config, samples[:60])
        trainer.await_published()
        trainer.stop()
        assert _spaces_naming(trainer, user) >= {"rows", "entity", "entity_row", "published"}
        shutil.copytree(trainer.store, tmp_path / "before")
        trainer.start()
        _produce(kafka, trainer.config, samples[60:400])
        trainer.await_published()
        with RepresentationReader(trainer.config, kafka) as reader:
            assert reader.get("user", user) is not None
            arguments = ("forget", "user", user, "--store", str(trainer.store), "--json")
            done = trainer.headwater(*arguments)
            assert done.returncode == 0, done.stdout + done.stderr
            report = json.loads(done.stdout)
            places = {place["name"]: place for place in report["places"]}
            assert places["a reader"]["found"] == 0
            assert places["representations.user (log)"]["found"] > 0, "told, not hidden"
            assert places["samples"]["found"] == 40 and "deleted by" in places["samples"]["note"]
            reader.wait_until(report["version"], 120)
            assert reader.get("user", user) is None and reader.get("cross", f"user:{user}") is None
            # Rolled back to before: everyone comes back but the forgotten.
            old = trainer.manifests()[-2].version
            assert trainer.headwater("rollback", str(old)).returncode == 0
            reader.wait_until(trainer.manifests()[-1].version, 120)
            assert reader.get("user", user) is None
            assert trainer.headwater("rollback", "--release").returncode == 0
        trainer.stop()
        assert _spaces_naming(trainer, user) == set()
        # A restored store reads the old samples once more: they are passed over.
        shutil.rmtree(trainer.store)
        shutil.copytree(tmp_path / "before", trainer.store)
        _produce(kafka, trainer.config, [s for s in samples[400:] if s.user_id != user])
        trainer.start()
        trainer.await_published()
        trainer.stop()
        assert _spaces_naming(trainer, user) == set()
        deleted = trainer.headwater(*arguments, "--check", "--delete-history")
        assert deleted.returncode == 0, deleted.stdout + deleted.stderr
        left = [m for _, m in read_to_end(trainer.config, kafka, [SAMPLES])]
        assert not any(user.encode() in (m.value() or b"") for m in left)

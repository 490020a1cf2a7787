"""`headwater store ...` on a real store: closed, live, and as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from embedding_store.checkpoints import complete
from embedding_store.errors import StoreError, StoreUnreadable
from embedding_store.keys import row_key, row_keys
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore
from embedding_store.verify import verify_files
from runtime.cli import app

runner = CliRunner()
LAYOUT = RowLayout(
    {"shared": SetSpec(dim=4), "task:like": SetSpec(dim=3, optimizer="adam")},
    {"item_id": (), "user_id": ("shared",)},
)
NOW_MS = 1_700_000_000_000
ITEMS, USERS = [f"i{n}" for n in range(30)], [f"u{n}" for n in range(20)]


def _write(store: EmbeddingStore) -> None:
    """Item n was touched n minutes ago, n + 1 times."""
    for n, item in enumerate(ITEMS):
        at_ms = NOW_MS - 60_000 * n
        keys = np.repeat(row_keys("item_id", [item]), n + 1)
        slots = np.full(n + 1, LAYOUT.slot_number("item_id"), np.uint16)
        lookup = store.lookup(keys, slots=slots, now_ms=at_ms)
        for name, spec in LAYOUT.sets.items():
            store.update(lookup, name, np.ones((1, spec.dim), np.float32), now_ms=at_ms)
    slots = np.full(len(USERS), LAYOUT.slot_number("user_id"), np.uint16)
    store.lookup(row_keys("user_id", USERS), slots=slots, now_ms=NOW_MS)
    store.put("trainer", b"progress", orjson.dumps({"now_ms": NOW_MS}))
    store.commit()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stack")
    with EmbeddingStore.open(
        folder / "store", LAYOUT, cache_rows_max=400, owner="headwater trainer"
    ) as store:
        _write(store)
    return folder


def _run(place: Path, *arguments: str) -> Result:
    return runner.invoke(app, ["store", arguments[0], "--dir", str(place), *arguments[1:]])


def _json(place: Path, *arguments: str) -> dict[str, object]:
    result = _run(place, *arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, object] = orjson.loads(result.stdout)
    return found


def test_stats_counts_rows_and_ages_by_slot(place: Path) -> None:
    found = _json(place, "stats")
    assert (found["rows"], found["commit_id"]) == (50, 1)
    assert found["slots"] == {
        "item_id": {
            "rows": 30,
            "occurrences": 30 * 31 // 2,
            "oldest_touched_s": NOW_MS // 1000 - 29 * 60,
            "newest_touched_s": NOW_MS // 1000,
        },
        "user_id": {
            "rows": 20,
            "occurrences": 0,
            "oldest_touched_s": NOW_MS // 1000,
            "newest_touched_s": NOW_MS // 1000,
        },
    }
    assert found["sets"] == {name: spec.shape() for name, spec in LAYOUT.sets.items()}
    state = found["state"]
    assert isinstance(state, dict) and state["trainer"]["records"] == 1
    text = _run(place, "stats").stdout
    assert "50 rows" in text and "task:like: 3 x float32, adam" in text


def test_get_finds_a_row_by_its_value_or_its_key(place: Path) -> None:
    found = _json(place, "get", "--slot", "item_id", "--value", "i4")
    assert found["count"] == 5 and found["slot"] == "item_id"
    assert found == _json(place, "get", "--key", hex(row_key("item_id", "i4")))
    sets = found["sets"]
    assert isinstance(sets, dict) and {n: len(v) for n, v in sets.items()} == {
        "shared": 4,
        "task:like": 3,
    }
    user = _json(place, "get", "--slot", "user_id", "--value", "u0")["sets"]
    assert isinstance(user, dict) and set(user) == {"shared"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["get", "--slot", "itm_id", "--value", "i4"], "did you mean 'item_id'?"),
        (["get", "--slot", "item_id"], "expected --slot and --value, or --key"),
        (["get", "--key", "zero"], "expected 64 bits such as 0x1f"),
        (["scan", "--touched-before", "yesterday"], "expected a time such as 2026-01-31"),
        (["scan", "--slot", "city"], "expected one of item_id, user_id"),
        (["expire"], "give --dry-run"),
        (["expire", "--dry-run"], "[expiry] deletes nothing"),
        (["export", "--parquet", "/no/such/folder/x"], "expected a file in a directory that"),
        (["migrate"], "expected --add-set or --drop-set"),
        (["migrate", "--add-set", "x:dim=four"], "dim = 'four' is not a number"),
        (["migrate", "--add-set", "x:dims=4"], "did you mean 'dim'?"),
        (["migrate", "--drop-set", "task:lik"], "absent=`['task:lik']`"),
    ],
)
def test_a_wrong_call_names_what_was_expected_and_exits_2(
    place: Path, arguments: list[str], says: str
) -> None:
    result = _run(place, *arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())


def test_a_row_that_is_not_there_fails(place: Path) -> None:
    result = _run(place, "get", "--slot", "user_id", "--value", "nobody")
    assert isinstance(result.exception, StoreUnreadable) and "'nobody'" in str(result.exception)


def test_scan_filters_and_stops_at_the_limit(place: Path) -> None:
    before = "2023-11-14T22:03:20"  # ten minutes before the newest
    result = _run(
        place, "scan", "--touched-before", before, "--count-max", "15", "--json", "--vectors"
    )
    rows = [orjson.loads(line) for line in result.stdout.splitlines()]
    assert sorted(row["count"] for row in rows) == [11, 12, 13, 14, 15]
    assert [int(row["key"], 16) for row in rows] == sorted(int(row["key"], 16) for row in rows)
    assert all(set(row["sets"]) == {"shared", "task:like"} for row in rows)
    limited = _run(place, "scan", "--slot", "user_id", "--limit", "7", "--json").stdout
    assert len(limited.splitlines()) == 7


def test_export_holds_every_row_with_a_list_per_set(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    assert _json(place, "export", "--parquet", str(file))["rows"] == 50
    frame = pl.read_parquet(file)
    assert frame.schema["shared"] == pl.Array(pl.Float32, 4)
    assert frame["key"].is_sorted() and frame["slot"].value_counts().sort("slot").rows() == [
        ("item_id", 30),
        ("user_id", 20),
    ]
    assert frame.filter(slot="user_id")["task:like"].null_count() == 20
    assert frame.filter(slot="item_id")["task:like"].null_count() == 0
    row = frame.filter(pl.col("key") == row_key("item_id", "i4")).row(0, named=True)
    told = _json(place, "get", "--slot", "item_id", "--value", "i4")
    assert {"shared": row["shared"], "task:like": row["task:like"]} == told["sets"]
    some = tmp_path / "some.parquet"
    assert _json(place, "export", "--parquet", str(some), "--count-min", "26")["rows"] == 5
    assert sorted(pl.read_parquet(some)["count"]) == [26, 27, 28, 29, 30]


def test_a_dry_run_says_what_would_go(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[expiry.slots.item_id]\nttl = "19min"\nrows_max = 15\n')
    found = _json(place, "expire", "--dry-run", "--config", str(config))
    assert (found["examined"], found["rows"]) == (50, 15)
    assert found["by_slot"] == {
        "item_id": {
            "rows": 15,
            "ttl": 10,
            "score": 0,
            "rows_max": 5,
            "oldest_touched_s": NOW_MS // 1000 - 29 * 60,
        }
    }
    assert _json(place, "stats")["rows"] == 50
    text = _run(place, "expire", "--dry-run", "--config", str(config)).stdout
    assert "15 of 50 rows would go" in text and "(10 by ttl, 5 by rows_max)" in text


def test_of_a_live_store_the_newest_checkpoint_answers(tmp_path: Path) -> None:
    with EmbeddingStore.open(
        tmp_path / "store", LAYOUT, cache_rows_max=400, owner="headwater trainer"
    ) as store:
        _write(store)
        refused = _run(tmp_path, "stats")
        assert isinstance(refused.exception, StoreError)
        assert "headwater trainer" in str(refused.exception)
        assert "--checkpoint latest" in str(refused.exception)
        none_yet = _run(tmp_path, "stats", "--checkpoint", "latest")
        assert isinstance(none_yet.exception, StoreUnreadable)
        folder = tmp_path / "store.checkpoints"
        folder.mkdir()
        store.checkpoint(folder / ".taking-1")
        name = "checkpoint-00000001-commit-1"
        taken = complete(
            folder / ".taking-1", name, commit_id=1, created_ms=NOW_MS, ranges={}, about={}
        )
        assert _json(tmp_path, "stats", "--checkpoint", "latest")["rows"] == 50
        assert _json(tmp_path, "stats", "--checkpoint", str(taken.path))["rows"] == 50
        assert not verify_files(taken.path).faults, "a reader changed the checkpoint"


def test_migrate_answers_with_what_the_store_holds_now(tmp_path: Path) -> None:
    with EmbeddingStore.open(tmp_path / "store", LAYOUT, cache_rows_max=400, owner="t") as store:
        _write(store)
    found = _json(
        tmp_path, "migrate", "--add-set", "exp:0:dim=2,optimizer=sgd", "--drop-set", "task:like"
    )
    assert found["rows"] == 50 and set(found["sets"]) == {"shared", "exp:0"}  # type: ignore[call-overload]
    assert set(_json(tmp_path, "stats")["sets"]) == {"shared", "exp:0"}  # type: ignore[call-overload]
    before = _json(tmp_path, "stats", "--store", str(found["before"]))
    assert set(before["sets"]) == {"shared", "task:like"}  # type: ignore[call-overload]

"""`headwater join`: two files through the real broker and the real job, every line one verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.running_stack import CONFIG, headwater, write_traffic

pytestmark = [pytest.mark.kafka, pytest.mark.flink, pytest.mark.slow]


@pytest.mark.timeout(600)
def test_join_gives_every_line_one_verdict_and_its_files_say_which(tmp_path: Path) -> None:
    write_traffic(tmp_path, 400)
    impressions, conversions = tmp_path / "impressions.jsonl", tmp_path / "conversions.jsonl"
    config, out = tmp_path / "c.toml", tmp_path / "out"
    config.write_text(CONFIG)
    with impressions.open("ab") as file:
        file.write(b"\xff not UTF-8\n" + b'{"pad":"' + b"x" * 2_000_000 + b'"}\n')
    files = ("--impressions", str(impressions), "--conversions", str(conversions))
    joined = headwater("join", *files, "--config", str(config), "--out", str(out), "--json")
    assert joined.returncode == 1, "the oversized line"
    number = len(impressions.read_bytes().splitlines())
    assert f"impressions line {number}: refused, 2000010 bytes are over" in joined.stderr
    report = json.loads(joined.stdout)
    assert report == json.loads((out / "audit.json").read_text())
    assert report["balanced"], report["differences"]
    assert report["impressions"]["in"] == number - 1
    lines = {path.stem: path.read_bytes().splitlines() for path in out.glob("*.jsonl")}
    samples = [json.loads(line) for line in lines["samples"]]
    assert sum(s["state"] == "final" for s in samples) == report["impressions"]["sampled"]
    assert len(lines["attributions"]) == report["conversions"]["attributed"]
    counts = {"late": "late", "duplicates": "duplicate", "undecodable": "undecodable"}
    for file_name, verdict in counts.items():
        of_both = sum(report[stream][verdict] for stream in ("impressions", "conversions"))
        assert len(lines[file_name]) == of_both
    assert len(lines["orphans"]) == report["conversions"]["orphan"]
    assert any("base64" in json.loads(line) for line in lines["undecodable"])
    known = [s["event_ms"] + s["elapsed_ms"] for s in samples]
    assert known == sorted(known)

"""Dashboards are what their tables give, and alerts fire as the runbooks say, by promtool."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.prometheus import DEPLOY, RULES, dashboards, needs_prometheus

RUNBOOKS = Path(__file__).parents[1] / "docs" / "runbooks.md"


def test_dashboards_are_what_their_tables_give() -> None:
    made = subprocess.run(
        [sys.executable, str(DEPLOY / "grafana" / "make_dashboards.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert set(dashboards()) == {"overview", "join", "trainer", "store", "publication"}


def test_panels_do_not_overlap_and_none_is_without_a_query() -> None:
    for name, board in dashboards().items():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, f"{name}: {panel['title']} covers another panel"
            assert at["x"] + at["w"] <= 24
            taken |= cells
            assert panel["targets"], panel["title"]


def test_every_alert_has_its_runbook() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    named = set(re.findall(r"runbooks\.md#(\w+)", RULES.read_text()))
    written = set(re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE))
    assert {a.lower() for a in alerts} == named == {w.lower() for w in written}


@needs_prometheus
def test_alert_rules_fire_and_keep_quiet_as_said() -> None:
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        ran = subprocess.run(
            ["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

"""The plans that are kept with the release, `stream/plans/NAME.json`: which operators hold state,
under which names, in which layout.

Flink finds an operator's state by its uid, and the operator finds its own by a name and a layout. A
plan says them all; state remembers which plan it belongs to. So whether state can be read is known
before a JVM is started, and a test compares the newest plan with the job as it is built.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from stream.errors import JoinPlanUnknown

_FOLDER = Path(__file__).parent / "plans"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One file. `number` orders them; state is written under the greatest."""

    name: str
    number: int
    flink: str
    operators: dict[str, list[str]]
    """Flink's uid -> the names of the operator's own states."""
    pair_layout: int
    """Of a pair's bytes (`PairCodec.VERSION`)."""


def plans() -> list[Plan]:
    """Those whose state this release reads, oldest first."""
    files = [msgspec.json.decode(path.read_bytes(), type=Plan) for path in _FOLDER.glob("*.json")]
    return sorted(files, key=lambda file: file.number)


def plan_for(state_plan: str | None) -> Plan:
    """The plan that kept state belongs to, or for a fresh start (None) the newest.

    Raises JoinPlanUnknown.
    """
    known = plans()
    if state_plan is None:
        return known[-1]
    for plan in known:
        if plan.name == state_plan:
            return plan
    names = ", ".join(plan.name for plan in known)
    raise JoinPlanUnknown(state_plan, f"this release has {names}")

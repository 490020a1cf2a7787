"""The compiled plans that are kept with the release, in `stream/plans/NAME.json`.

Flink names a job's operators, and so their state, by the plan: planned anew by another version, the
same SQL may get other names, and its state is lost. So the plan is compiled once (`python -m
stream.record_plan NAME`), kept, and run at every start; state says which plan it belongs to.

A plan holds three numbers of the config (the bound on events from the future, the lateness, the
idle timeout). It is compiled from numbers that stand for them, which `render` replaces. All else
that a config says reaches the job through table options and job parameters, which are not part of a
plan: one plan serves every config.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from settings.config import Config
from stream.errors import JoinPlanUnknown
from stream.plan import statements

_FOLDER = Path(__file__).parent / "plans"
# Numbers that no config has: milliseconds of some 280 years, told apart by their last digits.
_STANDS_FOR = {
    "future_bound": 8_888_888_888_801,
    "behind": 8_888_888_888_802,
    "idle_timeout": 8_888_888_888_803,
}


class PlanFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file. `number` orders them; a fresh start takes the greatest."""

    name: str
    number: int
    flink: str
    statements: list[str]
    """The SQL that it was compiled from, without table options: what it must fit."""
    plan: str
    """Flink's plan as text."""


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """A plan of this release."""

    file: PlanFile

    @property
    def name(self) -> str:
        return self.file.name

    def render(self, config: Config) -> str:
        """Flink's JSON for this config."""
        idle_ms = config.join.idle_timeout
        values = {
            "future_bound": config.events.future_bound,
            "behind": config.join.lateness + 1,
            "idle_timeout": idle_ms if idle_ms else -1,  # Flink's way to say never
        }
        text = self.file.plan
        for name, stand_in in _STANDS_FOR.items():
            text = text.replace(str(stand_in), str(values[name]))
        return text


def plans() -> list[CompiledPlan]:
    """Those of this release, oldest first."""
    files = [
        msgspec.json.decode(path.read_bytes(), type=PlanFile) for path in _FOLDER.glob("*.json")
    ]
    return [CompiledPlan(file) for file in sorted(files, key=lambda file: file.number)]


def plan_for(state_plan: str | None) -> CompiledPlan:
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


def template_config() -> Config:
    """The config that plans are compiled from: its numbers are stand-ins."""
    config = Config()
    return config.model_copy(
        update={
            "events": config.events.model_copy(
                update={"future_bound": _STANDS_FOR["future_bound"]}
            ),
            "join": config.join.model_copy(
                update={
                    "lateness": _STANDS_FOR["behind"] - 1,
                    "idle_timeout": _STANDS_FOR["idle_timeout"],
                }
            ),
        }
    )


def planned_statements() -> list[str]:
    """The SQL as it is now, without table options: what a plan is made of."""
    return [
        statement.split(") WITH (")[0]
        for statement in statements(template_config(), "broker:9092", bounded=False)
    ]


def save(name: str, flink: str, plan: str) -> Path:
    """Keep `plan` as the newest; replaces one of that name. Raises ValueError where a stand-in is
    missing: then the config's number would not reach the job."""
    missing = [key for key, number in _STANDS_FOR.items() if str(number) not in plan]
    if missing:
        raise ValueError(f"the plan does not hold {', '.join(missing)}")
    others = [known.file.number for known in plans() if known.name != name]
    file = PlanFile(
        name=name,
        number=max(others, default=0) + 1,
        flink=flink,
        statements=planned_statements(),
        plan=plan,
    )
    path = _FOLDER / f"{name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")
    return path

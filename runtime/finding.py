"""What a check of `doctor` has to say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `fix` is empty where nothing is to be done."""

    check: str
    verdict: Verdict
    says: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

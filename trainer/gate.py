"""Whether what was learnt may go out: bounds on calibration, entropy and drift."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from settings.load import ConfigError
from settings.publishing import GateConfig

Report = Mapping[str, float | int | None]


def check_gate(gate: GateConfig) -> None:
    """Raises ConfigError where a bound could not be watched."""
    if gate.drift_hold is not None and importlib.util.find_spec("river") is None:
        raise ConfigError(
            "publish.gate.drift_hold: expected the package river (extra `study`), which raises the "
            "alarms; it is not installed"
        )


def broken_bound(
    gate: GateConfig,
    latest: Mapping[str, Report],
    drifted_ms: Mapping[str, int | None],
    now_ms: int,
) -> str | None:
    """The first bound that is broken, in words; None if none is.

    `latest` are the metrics of the newest two windows by task, `drifted_ms` the newest alarm of
    each, `now_ms` the newest event time learnt from.
    """
    for task, report in latest.items():
        if int(report["positives"] or 0) < gate.positives_min:
            continue
        pcoc, entropy = report["pcoc"], report["ne"]
        if gate.pcoc_min is not None and pcoc is not None and pcoc < gate.pcoc_min:
            return f"pcoc of {task} {pcoc:.3f} is below {gate.pcoc_min:g}"
        if gate.pcoc_max is not None and pcoc is not None and pcoc > gate.pcoc_max:
            return f"pcoc of {task} {pcoc:.3f} is above {gate.pcoc_max:g}"
        if gate.ne_max is not None and entropy is not None and entropy > gate.ne_max:
            return f"ne of {task} {entropy:.3f} is above {gate.ne_max:g}"
    if gate.drift_hold is not None:
        for task, at_ms in drifted_ms.items():
            if at_ms is not None and now_ms - at_ms < gate.drift_hold:
                return f"{task} drifted in the window of {at_ms}"
    return None

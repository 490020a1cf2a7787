"""What can go wrong with the join, and what an operator does about it."""

from __future__ import annotations

from pathlib import Path


class JoinError(RuntimeError):
    """The join cannot run. `str()` is the reason, then a hint and the log where there are any."""


class JoinFailed(JoinError):
    """The Flink job failed, or could not be planned. Operator action: the hint, then the log."""

    def __init__(self, reason: str, *, hint: str | None = None, log: Path | None = None) -> None:
        self.reason = reason
        lines = [reason, f"hint: {hint}" if hint else "", f"log: {log}" if log else ""]
        super().__init__("\n".join(line for line in lines if line))


class JoinStateLost(JoinError):
    """The join's group has committed offsets, but `state_dir` holds no checkpoint.

    Starting from the beginning would write every sample a second time. Operator action: give the
    --state-dir of the earlier run, or start over under a new kafka.topic_prefix.
    """

    def __init__(self, state_dir: Path) -> None:
        super().__init__(
            f"the join has run on these topics before, but {state_dir} holds no checkpoint of it;"
            " starting over would write every sample twice\n"
            "hint: give the --state-dir of the earlier run, or a new kafka.topic_prefix"
        )


class JoinModeChanged(JoinError):
    """A restored source keeps the end (or the endlessness) that it was started with.

    Operator action: the same mode as before, or a new --state-dir under a new topic prefix.
    """

    def __init__(self, state_dir: Path, before: str, now: str) -> None:
        super().__init__(
            f"{state_dir} holds the state of a join over {before} input, and this one is {now}\n"
            f"hint: run it {before} again, or give a new --state-dir and kafka.topic_prefix"
        )


class JoinConfigChanged(JoinError):
    """The kept state belongs to another config (windows, kinds, policy, prefix).

    Operator action: set the named values back, or replay history under the new config.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the state of this join cannot go on under this config: {what}\n"
            "hint: set it back, or `headwater replay` history under the new config and switch over"
            " (docs/upgrade.md)"
        )


class JoinPlanUnknown(JoinError):
    """The state was made by a plan that this release does not ship, or cannot run.

    Operator action: run the release that made it, or replay under this one.
    """

    def __init__(self, plan: str, reason: str) -> None:
        super().__init__(
            f"the state belongs to the plan {plan!r}, and {reason}\n"
            "hint: run the release that made it, or `headwater replay` history and switch over"
            " (docs/upgrade.md)"
        )


class SavepointOld(JoinError):
    """Something newer than the asked savepoint is kept, and its outputs are committed.

    Operator action: restore the newest (the default), or replay.
    """

    def __init__(self, asked: Path, newest: Path) -> None:
        super().__init__(
            f"{asked} is older than {newest}: what the join wrote in between would be written"
            " twice\nhint: start without --restore, which takes the newest"
        )


class SavepointFailed(JoinError):
    """Flink could not write the savepoint; the job goes on. Operator action: the reason; retry."""


class FlinkUnreachable(JoinError):
    """No JobManager answers. Operator action: is the cluster up, is the address right?"""

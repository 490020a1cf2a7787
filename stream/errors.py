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

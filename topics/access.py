"""What each process may do on a broker with ACLs: the one list behind `headwater acls`, the table
in docs/security.md and the test that grants exactly this.

Who writes a topic is one process alone, save for the operator, who may do all on the prefix and
creates the topics. Every process of a stack may look at all of their layouts, which it checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, get_args

from settings.config import Config
from topics.names import (
    CONTROL,
    EVENT_TOPICS,
    JOIN_OUTPUTS,
    MANIFEST,
    POINTER,
    REPRESENTATION_TOPICS,
    SAMPLES,
    join_group,
    trainer_group,
)

Process = Literal["producer", "join", "trainer", "reader", "operator"]
PROCESSES: tuple[Process, ...] = get_args(Process)
Resource = Literal["topic", "group", "transactional-id"]
Operation = Literal["All", "Read", "Write", "Describe", "DescribeConfigs"]


class Right(NamedTuple):
    """One permission. `prefixed`: of every resource whose name begins with `name`."""

    process: Process
    resource: Resource
    name: str
    prefixed: bool
    operations: tuple[Operation, ...]


_READS: dict[Process, tuple[str, ...]] = {
    # Its own outputs say how far event time had come when it last ran.
    "join": (*EVENT_TOPICS, *JOIN_OUTPUTS),
    "trainer": (SAMPLES, *REPRESENTATION_TOPICS, MANIFEST, CONTROL),
    "reader": (*REPRESENTATION_TOPICS, MANIFEST, POINTER),
}
_WRITES: dict[Process, tuple[str, ...]] = {
    "producer": EVENT_TOPICS,
    "join": JOIN_OUTPUTS,
    "trainer": (*REPRESENTATION_TOPICS, MANIFEST),
}


def rights(config: Config) -> Iterator[Right]:
    """Every right of every process of the stack of `config`, process by process."""
    prefix = config.kafka.topic_prefix
    own = {config.topic("")} | ({f"{config.kafka.events_prefix}."} - {"."})
    for process in PROCESSES:
        if process == "operator":
            for begin in sorted(own):
                yield Right(process, "topic", begin, True, ("All",))
            yield Right(process, "group", f"{prefix}.", True, ("All",))
            yield Right(process, "transactional-id", f"{prefix}-", True, ("All",))
            continue
        if process != "producer":
            for begin in sorted(own):
                yield Right(process, "topic", begin, True, ("Describe", "DescribeConfigs"))
            # Clients that read by assignment have a group's name, too, and ask who coordinates it.
            yield Right(process, "group", f"{prefix}.scan.", True, ("Describe",))
        for name in _READS.get(process, ()):
            yield Right(process, "topic", config.topic(name), False, ("Read",))
        for name in _WRITES.get(process, ()):
            yield Right(process, "topic", config.topic(name), False, ("Write",))
    yield Right("join", "group", join_group(config), False, ("Read",))
    yield Right("join", "transactional-id", f"{prefix}-join", True, ("Write", "Describe"))
    yield Right("trainer", "group", trainer_group(config), False, ("Read",))
    yield Right("trainer", "transactional-id", f"{prefix}-trainer", False, ("Write", "Describe"))


def commands(config: Config, bootstrap: str, principals: Mapping[str, str]) -> Iterator[str]:
    """The same as commands of Kafka's own kafka-acls.sh."""
    for right in rights(config):
        operations = " ".join(f"--operation {operation}" for operation in right.operations)
        pattern = " --resource-pattern-type prefixed" if right.prefixed else ""
        yield (
            f"kafka-acls.sh --bootstrap-server {bootstrap} --add "
            f"--allow-principal User:{principals[right.process]} {operations} "
            f"--{right.resource} {right.name}{pattern}"
        )

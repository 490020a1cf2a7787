"""One Flink process of `bench/join.py`: runs a bounded job whenever it is told to.

    python flink_job.py --bootstrap B --state-dir D

For each line `KIND CONFIG_FILE PREFIX` (`JOBS`) on stdin it copies or joins everything under the
topic prefix and prints the job's net runtime in milliseconds. One process for all rounds, so that a
round times the job and neither the JVM's start nor its first compilation.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from settings.config import Config
from settings.load import load_config
from stream.__main__ import _free_port
from stream.job import JoinJob, jar_paths
from stream.plan import sink_properties, source_properties
from topics.names import STREAMS

COPIED = "copied"


class WarmJob(JoinJob):
    """The join; its jars lie on the JVM's own class path (see `main`), or Flink would load every
    class anew for each job, and a round would time the compiler."""

    def settings(self, settings: dict[str, str]) -> dict[str, str]:
        return settings | {"classloader.resolve-order": "parent-first"}


class OftenSavedJob(WarmJob):
    """The join with checkpoints that see what is open in the midst of a short input, too."""

    def settings(self, settings: dict[str, str]) -> dict[str, str]:
        often = {"execution.checkpointing.interval": "200 ms"}
        return super().settings(settings) | often | {"execution.checkpointing.min-pause": "0 ms"}


class CopyJob(WarmJob):
    """Both event topics into one, byte for byte, in SQL, with the clients' settings of the join."""

    def settings(self, settings: dict[str, str]) -> dict[str, str]:
        return super().settings(settings) | {"pipeline.auto-generate-uids": "true"}

    def submit(self, configuration: Any, config: Config, bootstrap: str, *, bounded: bool) -> Any:
        from pyflink.table import EnvironmentSettings, TableEnvironment

        assert bounded
        mode = EnvironmentSettings.new_instance().in_streaming_mode()
        tables = TableEnvironment.create(mode.with_configuration(configuration).build())
        raw = {
            "connector": "kafka",
            "key.format": "raw",
            "key.fields": "k",
            "value.format": "raw",
            "value.fields-include": "EXCEPT_KEY",
        }
        source = raw | {
            "topic": ";".join(config.topic(stream) for stream in STREAMS),
            "scan.startup.mode": "earliest-offset",
            "scan.bounded.mode": "latest-offset",
            **_prefixed(source_properties(config, bootstrap)),
            "properties.group.id": f"{config.kafka.topic_prefix}.copy",
        }
        sink = raw | {
            "topic": config.topic(COPIED),
            "sink.delivery-guarantee": "exactly-once",
            "sink.transaction-naming-strategy": "POOLING",
            "sink.transactional-id-prefix": f"{config.kafka.topic_prefix}-copy",
            **_prefixed(sink_properties(config, bootstrap, bounded=True)),
        }
        for name, options in (("events", source), ("copied", sink)):
            words = ", ".join(f"'{key}' = '{value}'" for key, value in options.items())
            tables.execute_sql(f"CREATE TEMPORARY TABLE {name} (k BYTES, v BYTES) WITH ({words})")
        return tables.execute_sql("INSERT INTO copied SELECT k, v FROM events").get_job_client()


def _prefixed(properties: Mapping[str, str]) -> dict[str, str]:
    """As table options; SQL has its own word for how often partitions are looked for."""
    return {
        f"properties.{name}": value
        for name, value in properties.items()
        if not name.startswith("partition.discovery.")
    }


JOBS = {"copy": CopyJob, "join": WarmJob, "join-often-saved": OftenSavedJob}


def main() -> None:
    """See the module; ends at the end of stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    # The only variable by which PyFlink lets one add to the class path.
    os.environ["HADOOP_CLASSPATH"] = ":".join(str(jar) for jar in jar_paths())
    for number in itertools.count():
        told = sys.stdin.readline().split()
        if not told:
            break
        kind, file, prefix = told
        make = JOBS[kind]
        config = load_config(Path(file), env={}).config
        kafka = config.kafka.model_copy(update={"topic_prefix": prefix})
        job = make(
            config.model_copy(update={"kafka": kafka}),
            options.bootstrap,
            options.state_dir / f"run{number}",
            bounded=True,
            rest_port=_free_port(),
            has_run=lambda: False,  # a run writes the same outputs once more, on purpose
        )
        job.wait(lambda: False)
        sys.stdout.write(f"{job.net_runtime_ms}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

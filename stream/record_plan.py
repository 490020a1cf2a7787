"""`python -m stream.record_plan NAME`: compile the SQL as it is now and keep it as a plan.

For whoever changes the SQL: plans of releases stay as they are, and get a successor.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from stream.compiled import planned_statements, save, template_config
from stream.job import jar_paths
from stream.plan import flink_settings, statements


def record(name: str) -> Path:
    """Compile and save. Raises JoinFailed without jars, ValueError (see `compiled.save`)."""
    from pyflink.common import Configuration
    from pyflink.table import EnvironmentSettings, TableEnvironment
    from pyflink.version import __version__ as flink

    config = template_config()
    with tempfile.TemporaryDirectory() as folder:
        settings = flink_settings(
            config,
            state_dir=Path(folder),
            jars=jar_paths(),
            rest_port=0,
            bounded=False,
            restore_from=None,
            watermark_ms=-1,
        )
        configuration = Configuration()
        for key, value in settings.items():
            configuration.set_string(key, value)
        mode = EnvironmentSettings.new_instance().in_streaming_mode()
        tables = TableEnvironment.create(mode.with_configuration(configuration).build())
        *before, insert = statements(config, "broker:9092", bounded=False)
        for statement in before:
            tables.execute_sql(statement)
        compiled = Path(folder) / "plan.json"
        tables.execute_sql(f"COMPILE PLAN '{compiled}' FOR {insert}")
        text = compiled.read_text(encoding="utf-8")
    assert len(planned_statements()) == len(before) + 1
    return save(name, str(flink), text)


if __name__ == "__main__":
    sys.stdout.write(f"{record(sys.argv[1])}\n")
    sys.stdout.flush()
    os._exit(0)  # py4j's threads have no orderly end

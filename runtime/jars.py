"""Where the jars, Java and optional packages are, and what to do when they are not there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

JAVA_MAJOR_MIN = 17

_EXTRAS = {
    "pyflink": "flink",
    **dict.fromkeys(("torch", "rocksdict", "numba", "safetensors"), "train"),
    **dict.fromkeys(("matplotlib", "lightgbm", "river"), "study"),
    "usearch": "retrieval",
}
"""Optional module -> the extra of pyproject.toml that brings it."""

_VERSION = re.compile(r'version "(\d+)')


class ToolMissing(RuntimeError):
    """Java or a jar is absent or too old. Operator action: what the text says; nothing started."""


def not_installed(module: str) -> str | None:
    """What to say where one of our optional packages is absent; None of any other module."""
    extra = _EXTRAS.get(module.partition(".")[0])
    if extra is None:
        return None
    return (
        f"{module} is not installed here: run this where `make setup` ran or headwater[{extra}] "
        "is installed; of containers, in the trainer's or the join's"
    )


def require_module(module: str) -> None:
    """Raises ToolMissing where an optional package of ours is absent."""
    if importlib.util.find_spec(module) is None:
        raise ToolMissing(not_installed(module))


def jar_home() -> Path:
    """Directory that holds `kafka/` and `flink/`: $HEADWATER_JARS, else <checkout>/build/jars."""
    override = os.environ.get("HEADWATER_JARS")
    return Path(override) if override else Path(__file__).resolve().parent.parent / "build" / "jars"


def kafka_classpath() -> str:
    """Java class path of the embedded broker.

    Raises ToolMissing when the jars were not resolved.
    """
    folder = jar_home() / "kafka"
    if not any(folder.glob("kafka_2.13-*.jar")):
        raise ToolMissing(f"the Kafka jars are not in {folder}: run `make setup`")
    return str(folder / "*")


def flink_jars() -> list[Path]:
    """Jars of the join. Raises ToolMissing when they were not built."""
    found = sorted((jar_home() / "flink").glob("*.jar"))
    if not any(jar.name == "headwater-join.jar" for jar in found):
        raise ToolMissing(f"the join's jars are not in {jar_home() / 'flink'}: run `make setup`")
    return found


def java_path() -> Path:
    """The java of $JAVA_HOME, else of PATH. Raises ToolMissing; its version is not checked."""
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").is_file():
        return Path(home) / "bin" / "java"
    found = shutil.which("java")
    if found is None:
        raise ToolMissing(
            f"Java was not found on PATH nor in JAVA_HOME: install a JDK {JAVA_MAJOR_MIN} or newer"
        )
    return Path(found)


def java_major(java: Path) -> int:
    """Major version of `java`. Raises ToolMissing when it does not run or says no version."""
    try:
        run = subprocess.run(
            [str(java), "-version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolMissing(f"{java} does not run: {error}") from error
    match = _VERSION.search(run.stderr + run.stdout)
    if match is None:
        raise ToolMissing(f"{java} -version says no version: {run.stderr.strip()!r}")
    return int(match.group(1))


def require_java() -> Path:
    """A java that is new enough. Raises ToolMissing."""
    java = java_path()
    major = java_major(java)
    if major < JAVA_MAJOR_MIN:
        raise ToolMissing(f"Java {JAVA_MAJOR_MIN} or newer is needed, {java} is Java {major}")
    return java

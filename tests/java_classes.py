"""Programs of `tests/java` over the join's built classes, without a cluster of Flink."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pyflink

from stream.job import jar_paths


def compiled(folder: Path, name: str) -> str:
    """Compile `tests/java/NAME.java` into `folder`; the class path to run it with."""
    flink = Path(pyflink.__file__).parent / "lib"
    jars = [*jar_paths(), *flink.glob("flink-table-api-java-uber-*.jar")]
    jars += flink.glob("flink-dist-*.jar")
    classpath = ":".join(map(str, [folder, *jars]))
    source = Path(__file__).with_name("java") / f"{name}.java"
    subprocess.run(["javac", "-cp", classpath, "-d", str(folder), str(source)], check=True)
    return classpath

"""Which jars belong into build/jars, by SHA-256: `jars.sha256` beside each pom.xml that resolves
them. Written by `python -m runtime.jar_hashes` after a change of a pom, checked by `doctor`.

The join's own jar is built on each machine and not among them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from runtime.jars import jar_home

_ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    "kafka": _ROOT / "runtime" / "kafka" / "jars.sha256",
    "flink": _ROOT / "stream" / "java" / "jars.sha256",
}
_OWN = "headwater-join.jar"


def differences(folder: str) -> Iterator[str]:
    """What is wrong with the jars of `folder` ("kafka" or "flink"): changed, missing, unknown."""
    lines = LOCKS[folder].read_text(encoding="utf-8").splitlines()
    locked = {name: digest for digest, name in (line.split() for line in lines)}
    found = _hashes(folder)
    for name in sorted(locked.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in locked:
            yield f"{name} does not belong there"
        elif locked[name] != found[name]:
            yield f"{name} is not the locked one"


def _hashes(folder: str) -> dict[str, str]:
    return {
        jar.name: hashlib.sha256(jar.read_bytes()).hexdigest()
        for jar in sorted((jar_home() / folder).glob("*.jar"))
        if jar.name != _OWN
    }


def main() -> int:
    """Lock what is there."""
    for folder, lock in LOCKS.items():
        lines = [f"{digest}  {name}\n" for name, digest in _hashes(folder).items()]
        lock.write_text("".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The checks of `doctor` on this machine: Java, Python, packages, jars, disk, a stack's ports."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from runtime.broker import HOST
from runtime.finding import Finding
from runtime.jar_hashes import differences
from runtime.jars import (
    JAVA_MAJOR_MIN,
    ToolMissing,
    flink_jars,
    java_major,
    java_path,
    kafka_classpath,
)
from runtime.run_state import RunState

DISK_FREE_BYTES_MIN = 2 * 1024**3
_RUN_A_STACK = ("apache-flink", "torch", "rocksdict")
_NAMED = ("headwater", "confluent-kafka", *_RUN_A_STACK, "numpy")


def machine_findings(directory: Path) -> Iterator[Finding]:
    """Of whatever a stack in `directory` needs before it starts; where the command line alone is
    installed, as in a container beside the stack's, of what that needs."""
    if not any(map(_installed, _RUN_A_STACK)):
        says = f"without {', '.join(_RUN_A_STACK)}: this installation looks at stacks, starts none"
        yield from (_python(), Finding("versions", "ok", says), _disk(directory))
        return
    yield _java()
    yield _python()
    yield _versions()
    yield from _jars()
    yield _disk(directory)


def _java() -> Finding:
    try:
        java = java_path()
        major = java_major(java)
    except ToolMissing as error:
        return Finding("java", "problem", str(error), f"install a JDK {JAVA_MAJOR_MIN} or newer")
    if major < JAVA_MAJOR_MIN:
        fix = f"install a JDK {JAVA_MAJOR_MIN} or newer, or point JAVA_HOME at one"
        return Finding("java", "problem", f"{java} is Java {major}", fix)
    return Finding("java", "ok", f"Java {major} at {java}")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] != (3, 11):
        return Finding("python", "problem", f"this is Python {version}", "use Python 3.11")
    return Finding("python", "ok", version)


def _versions() -> Finding:
    """Everything that headwater itself pins exactly or needs at all, as it is installed."""
    found = {name: version for name in _NAMED if (version := _installed(name))}
    missing = [name for name in _NAMED if name not in found]
    wrong = [
        f"{name} is {found[name]}, not {pinned}"
        for name, pinned in _pins().items()
        if found.get(name, pinned) != pinned
    ]
    if missing or wrong:
        absent = [f"{', '.join(missing)} not installed"] if missing else []
        return Finding("versions", "problem", "; ".join([*absent, *wrong]), "run `make setup`")
    return Finding("versions", "ok", ", ".join(f"{name} {at}" for name, at in found.items()))


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pins() -> dict[str, str]:
    """Packages that headwater's own metadata pins exactly."""
    try:
        needs = importlib.metadata.requires("headwater") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    split = (need.partition(";")[0].strip().partition("==") for need in needs)
    return {name: version for name, equals, version in split if equals}


def _jars() -> Iterator[Finding]:
    for folder, name, require in (
        ("kafka", "jars of the broker", kafka_classpath),
        ("flink", "jars of the join", _flink),
    ):
        try:
            where = require().removesuffix("/*")
        except ToolMissing as error:
            yield Finding(name, "problem", str(error).split(":")[0], "run `make setup`")
            continue
        if wrong := list(differences(folder)):
            said = "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if wrong[3:] else "")
            yield Finding(name, "problem", f"in {where}: {said}", f"rm -r {where} && make jars")
        else:
            yield Finding(name, "ok", f"in {where}, each with its locked hash")


def _flink() -> str:
    return str(flink_jars()[0].parent)


def _disk(directory: Path) -> Finding:
    existing = directory.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    says = f"{free / 1024**3:.1f} GiB free at {existing}"
    if free < DISK_FREE_BYTES_MIN:
        return Finding("disk", "problem", says, "free some space, or use a --dir on another disk")
    return Finding("disk", "ok", says)


def port_findings(run: RunState) -> Iterator[Finding]:
    """Does every process of the stack listen where it should, and on loopback alone?"""
    wide: list[str] = []
    silent: list[str] = []
    count = 0
    for name, child in run.children.items():
        if child.pid is None:
            continue
        listening = _listening(child.pid)
        count += len(listening)
        wide += [f"{name} on {host}:{port}" for host, port in listening if not _is_loopback(host)]
        if child.metrics_port and all(port != child.metrics_port for _, port in listening):
            silent.append(f"{name} (metrics, {child.metrics_port})")
    if silent:
        yield Finding(
            "ports",
            "problem",
            f"nobody of the stack listens for {', '.join(silent)}",
            "another process may hold the port: `headwater down` and `up` take free ones",
        )
    if wide:
        yield Finding(
            "ports",
            "warning",
            f"reachable from other machines: {', '.join(wide)}",
            f'set metrics.host = "{HOST}", unless a firewall stands before them',
        )
    if not silent and not wide:
        yield Finding("ports", "ok", f"{count} in use, all on loopback")


def _listening(pid: int) -> list[tuple[str, int]]:
    """(host, port) of every listening socket of the process and what it started."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    found = set()
    for process in family:
        try:
            connections = process.net_connections("tcp")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        for at in connections:
            if at.status == psutil.CONN_LISTEN:
                found.add((at.laddr.ip, at.laddr.port))
    return sorted(found)


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")

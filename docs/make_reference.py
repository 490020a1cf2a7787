"""Writes docs/reference/{cli,config,metrics,access}.md from the command line's own help, the
config's schema, the metrics' declarations and the list of rights; `--check` only says whether they
are current."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from runtime.cli import app
from settings.config import IMPLICIT_SLOTS, Config
from settings.duration import format_duration
from topics.access import PROCESSES, rights

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
_MADE = "Made by `python docs/make_reference.py`; a test compares it with the code.\n"
_WIDTH = 96
_COLLECTORS = {
    "Counter": "counter",
    "CounterMetricFamily": "counter",
    "Gauge": "gauge",
    "GaugeMetricFamily": "gauge",
    "Histogram": "histogram",
    "HistogramMetricFamily": "histogram",
}
_WHO = {
    "topics": "every process that reads or stores",
    "stream": "join",
    "trainer": "trainer",
    "downstream": "reader",
}


def cli() -> str:
    """Every verb's `--help`, as it is printed."""
    parts = ["# Command line\n", _MADE]
    for path, command in _commands(typer.main.get_command(app), ("headwater",)):
        context = command.context_class(
            command, info_name=" ".join(path), max_content_width=_WIDTH, terminal_width=_WIDTH
        )
        # What the context of the whole program sets; a verb alone would not know of it.
        context.help_option_names = ["-h", "--help"]
        text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        parts.append(f"## {' '.join(path)}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    if children := getattr(command, "commands", None):
        for name, child in sorted(children.items()):
            yield from _commands(child, (*path, name))


def config() -> str:
    """Every value of the config: name, type, default, meaning."""
    rows = [
        "# Config\n",
        _MADE,
        "One TOML file; `headwater config init` writes one for your events, `config check` checks "
        "it, `config show` says what is in force and from where. In the environment a value is "
        "`HEADWATER__SECTION__NAME`. Durations are written `500ms`, `8s`, `24h`. Slots that every "
        f"impression has without being listed: {', '.join(IMPLICIT_SLOTS)}.\n",
    ]
    sections = [("", Config), *_sections(Config, "")]
    for name, section in sections:
        leaves = {
            key: field
            for key, field in section.model_fields.items()
            if not _section_of(field.annotation)
        }
        if not leaves:
            continue
        rows.append(f"## {f'[{name}]' if name else 'Top level'}\n")
        rows.append("| value | type | default | meaning |\n|---|---|---|---|")
        rows += [_row(key, field) for key, field in leaves.items()]
        rows.append("")
    return "\n".join(rows)


def _sections(section: type[BaseModel], at: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for key, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is None:
            continue
        name = f"{at}{key}" + (".NAME" if get_origin(field.annotation) is dict else "")
        yield name, inner
        yield from _sections(inner, f"{name}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is, or holds by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is dict:
        return _section_of(get_args(annotation)[1])
    return None


def _row(key: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    duration = "DurationMs" in repr(field.annotation) or any(
        "duration" in repr(item).lower() for item in field.metadata
    )
    shown = format_duration(default) if duration and isinstance(default, int) else default
    text = "required" if field.is_required() else f"`{shown!r}`"
    meaning = " ".join((field.description or "").split())
    cells = (f"`{key}`", _type(field.annotation, duration), text.replace("'", '"'), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(annotation: Any, duration: bool) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if duration or origin is None:
        return "duration" if duration else getattr(annotation, "__name__", str(annotation))
    if all(isinstance(one, str) for one in inner):
        return ", ".join(f"`{one}`" for one in inner)
    if hasattr(annotation, "__metadata__"):
        return _type(inner[0], duration)
    if origin is tuple:
        return f"list of {_type(inner[0], False)}"
    if origin is dict:
        return f"{_type(inner[1], False)} by name"
    return " or ".join(_type(one, False) for one in inner if one is not type(None))


def metrics() -> str:
    """Every metric that a process declares: name as Prometheus has it, kind, labels, meaning."""
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    for package, who in _WHO.items():
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for name, kind, labels, meaning in _declared(tree):
                whose = "audit --follow" if file.stem == "audit_live" else who
                found[name, whose] = (kind, labels, meaning)
    rows = [
        "# Metrics\n",
        _MADE,
        "Each process serves `/metrics` and `/healthz` on its own port (`headwater status --json`: "
        "`metrics_port`). Times are seconds, or Unix seconds where the name ends in "
        "`_timestamp_seconds`: `time() - x` goes on growing when a process is dead.\n",
        "| metric | kind | labels | of | meaning |\n|---|---|---|---|---|",
    ]
    rows += [
        f"| `{name}` | {kind} | {labels} | {who} | {meaning} |"
        for (name, who), (kind, labels, meaning) in sorted(found.items())
    ]
    return "\n".join(rows) + "\n"


def _declared(tree: ast.Module) -> Iterator[tuple[str, str, str, str]]:
    constants = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for target in node.targets
        if isinstance(target, ast.Name) and _is_literal(node.value)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        if called not in _COLLECTORS or not texts or not str(texts[0]).startswith("headwater_"):
            continue
        kind = _COLLECTORS[called]
        name = str(texts[0]) + ("_total" if kind == "counter" else "")
        labels = ", ".join(_labels(node, constants))
        yield name, kind, labels, " ".join(str(texts[1]).split()).replace("|", "\\|")


def _labels(call: ast.Call, constants: Mapping[str, Any]) -> list[str]:
    given = [k.value for k in call.keywords if k.arg in ("labels", "labelnames")]
    given += [a for a in call.args if isinstance(a, ast.List | ast.Tuple)]
    for node in given:
        if isinstance(node, ast.Name):
            return list(constants.get(node.id, ()))
        if _is_literal(node):
            return list(ast.literal_eval(node))
    return []


def _is_literal(node: ast.expr) -> bool:
    return all(isinstance(part, ast.Constant) for part in getattr(node, "elts", ()))


def access() -> str:
    """What each process needs on a broker with ACLs, for the default prefix."""
    rows = [
        "# Rights on the broker\n",
        _MADE,
        'For `kafka.topic_prefix = "headwater"`; `headwater acls --config FILE` prints them for '
        "your own as commands of kafka-acls.sh. A name that ends in `*` is a prefix.\n",
        "| process | resource | name | operations |\n|---|---|---|---|",
    ]
    rows += [
        f"| {right.process} | {right.resource} | `{right.name}{'*' if right.prefixed else ''}` "
        f"| {', '.join(right.operations)} |"
        for right in sorted(rights(Config()), key=lambda right: PROCESSES.index(right.process))
    ]
    return "\n".join(rows) + "\n"


def main() -> int:
    """0 = written, or with --check current; 1 = not current."""
    stale = []
    for page in (cli, config, metrics, access):
        name, text = page.__name__, page()
        file = FOLDER / f"{name}.md"
        current = file.exists() and file.read_text(encoding="utf-8") == text
        if "--check" in sys.argv[1:]:
            stale += [] if current else [str(file.relative_to(ROOT))]
        else:
            file.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"not current, run docs/make_reference.py: {', '.join(stale)}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

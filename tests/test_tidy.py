"""The house rules that no linter knows: sizes, reserved names, documents that name real things."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "settings",
    "topics",
    "stream",
    "embedding_store",
    "trainer",
    "downstream",
    "runtime",
)
MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 70
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}


def _modules() -> list[Path]:
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_modules_are_small_and_say_what_they_are() -> None:
    problems = []
    for path in _modules():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        if text.count("\n") > MODULE_LINES_MAX:
            problems.append(f"{name}: {text.count(chr(10))} lines, at most {MODULE_LINES_MAX}")
        if path.stem in VAGUE_NAMES:
            problems.append(f"{name}: the name says nothing; name the one job")
        if text.strip() and ast.get_docstring(ast.parse(text)) is None:
            problems.append(f"{name}: no module docstring")
    assert not problems, "\n".join(problems)


def test_functions_fit_on_a_screen() -> None:
    problems = [
        f"{path.relative_to(ROOT)}: {function.name} has {length} lines"
        for path in _modules()
        for function in _functions(ast.parse(path.read_text(encoding="utf-8")))
        if (length := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not problems, "\n".join(problems)


def test_nothing_is_pickled() -> None:
    pattern = re.compile(r"\b(pickle|cloudpickle|joblib|torch\.load|torch\.save)\b")
    problems = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in _modules()
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not problems, "bytes that run code when read:\n" + "\n".join(problems)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_imported_is_ours(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT), f"a foreign {package!r} shadows ours"


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md"])
def test_every_path_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    folders = "|".join((*PACKAGES, "tests", "bench", "deploy"))
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    missing = sorted({name for name in named if not (ROOT / name).exists()})
    assert not missing, f"{document} names what does not exist: {missing}"

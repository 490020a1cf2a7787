"""File + environment + flags -> `Config`, remembering where each value came from.

Precedence: default < file < environment (`HEADWATER__TRAINER__DEVICE=cuda`) < flag. Unknown keys in
any of them are errors that name the nearest known key.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from settings.config import Config
from settings.errors import ConfigError

ENV_PREFIX = "HEADWATER__"
__all__ = ["ENV_PREFIX", "ConfigError", "LoadedConfig", "load_config", "load_config_at"]


class LoadedConfig:
    """A checked config and the origin of each of its values."""

    def __init__(self, config: Config, origins: Mapping[tuple[str, ...], str]) -> None:
        self.config = config
        self._origins = origins

    def values(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted name, value as written in TOML, origin) for every leaf, in schema order."""
        for path, value in _leaves(self.config.model_dump(mode="json")):
            yield ".".join(path), value, self._origin(path)

    def _origin(self, path: tuple[str, ...]) -> str:
        for depth in range(len(path), 0, -1):
            origin = self._origins.get(path[:depth])
            if origin:
                return origin
        return "default"


def load_config(
    file: Path | None,
    *,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> LoadedConfig:
    """Read, merge and check. `flags` maps dotted names to values ("trainer.device": "cuda").

    Raises ConfigError for an unreadable file, bad TOML, unknown keys or bad values.
    """
    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    if file is not None:
        for path, value in _leaves(_read_toml(file)):
            _put(merged, path, value)
            origins[path] = str(file)
    for name, text in sorted((os.environ if env is None else env).items()):
        if name.startswith(ENV_PREFIX):
            path = tuple(part.lower() for part in name.removeprefix(ENV_PREFIX).split("__"))
            _put(merged, path, _parse_env(text))
            origins[path] = f"environment {name}"
    for dotted, value in (flags or {}).items():
        path = tuple(dotted.split("."))
        _put(merged, path, value)
        origins[path] = "flag"
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from error
    return LoadedConfig(config, origins)


def load_config_at(file: Path | None, bootstrap: str | None) -> Config:
    """`file`'s config, with the broker that the command line names, if it names one.

    Raises ConfigError.
    """
    return load_config(file, flags={"kafka.bootstrap": bootstrap} if bootstrap else {}).config


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no such config file; `headwater config init` writes one"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: not readable as TOML: {error}") from error


def _parse_env(text: str) -> Any:
    """A TOML value where it reads as one (numbers, booleans, lists), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _leaves(
    tree: Mapping[str, Any], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*at, str(key)))
        else:
            yield (*at, str(key)), value


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{'.'.join(path)}: {key} is a value, not a section")
        tree = child
    tree[path[-1]] = value


def _explain(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "config"
        if item["type"] == "extra_forbidden":
            known = _known_keys(item["loc"][:-1])
            yield f"{where}: unknown key{_nearest(str(item['loc'][-1]), known)}"
        elif item["type"] == "literal_error":
            expected = str(item["ctx"]["expected"])
            choices = [c.strip().strip("'") for c in expected.replace(" or ", ", ").split(",")]
            hint = _nearest(str(item["input"]), choices)
            yield f"{where}: expected {expected}, got {item['input']!r}{hint}"
        elif item["type"] in ("value_error", "missing"):
            yield f"{where}: {item['msg'].removeprefix('Value error, ')}"
        else:
            yield f"{where}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}"


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in loc:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[str(part)].annotation
        else:  # a name under [kinds.*] or [slots.*]
            model = next(
                (a for a in get_args(model) if isinstance(a, type) and issubclass(a, BaseModel)),
                model,
            )
    return (
        list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
    )

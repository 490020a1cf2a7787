"""Secrets of `kafka.extra`: the config names where they are, clients alone hold what they are.

    "sasl.password" = "file:/run/secrets/kafka"    the file's text without its last line break
    "sasl.password" = "env:KAFKA_PASSWORD"         the process's own environment

A config is copied, shown and logged, so a secret may not be in it. References are read when a
client is made and never written anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from settings.errors import ConfigError

Value = str | int | float | bool
_SECRET_WORDS = ("password", "secret", "key.pem", "token")
_FILE, _ENVIRONMENT = "file:", "env:"


def literal_secrets(extra: Mapping[str, Value]) -> list[str]:
    """Names in `extra` whose value is a secret itself instead of where it is."""
    return [
        name
        for name, value in extra.items()
        if any(word in name for word in _SECRET_WORDS)
        and not str(value).startswith((_FILE, _ENVIRONMENT))
    ]


def resolved(extra: Mapping[str, Value]) -> dict[str, Value]:
    """`extra` with every reference read. Raises ConfigError naming the setting, never its value."""
    return {name: _read(name, value) for name, value in extra.items()}


def _read(name: str, value: Value) -> Value:
    text = str(value)
    where = f"kafka.extra: {name}"
    if text.startswith(_ENVIRONMENT):
        variable = text.removeprefix(_ENVIRONMENT)
        found = os.environ.get(variable)
        if found is None:
            raise ConfigError(f"{where}: the environment has no {variable}; set it")
        return found
    if text.startswith(_FILE):
        path = text.removeprefix(_FILE)
        try:
            return Path(path).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"{where}: {path} cannot be read: {reason}") from None
    if name.endswith(".location") and not Path(text).exists():
        raise ConfigError(f"{where}: {text} is not there")
    return value

"""Writes a checked `Config` as TOML that `settings.load` reads back to the same values."""

from __future__ import annotations

from pathlib import Path

import tomlkit

from settings.config import Config


def write_config(config: Config, path: Path, *, comment: str) -> None:
    """Every value of `config` to `path`, headed by `comment`."""
    document = tomlkit.document()
    for line in comment.splitlines():
        document.add(tomlkit.comment(line))
    document.update(config.model_dump(mode="json", exclude_none=True))
    path.write_text(tomlkit.dumps(document), encoding="utf-8")

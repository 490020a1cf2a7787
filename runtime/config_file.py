"""Reads the config that a verb was given, and writes one that reads back to the same values."""

from __future__ import annotations

from pathlib import Path

import tomlkit

from settings.config import Config
from settings.load import load_config
from trainer.models.catalogue import check_model_name


def read_config(path: Path | None) -> Config:
    """Checked whole, the model's name included, before anything starts. Raises ConfigError."""
    config = load_config(path).config
    check_model_name(config.model.name)
    return config


def write_config(config: Config, path: Path, *, comment: str) -> None:
    """Every value of `config` to `path`, headed by `comment`."""
    document = tomlkit.document()
    for line in comment.splitlines():
        document.add(tomlkit.comment(line))
    document.update(config.model_dump(mode="json", exclude_none=True))
    path.write_text(tomlkit.dumps(document), encoding="utf-8")

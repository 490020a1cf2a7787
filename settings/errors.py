"""What can be wrong with a config."""

from __future__ import annotations


class ConfigError(ValueError):
    """The config is wrong. `str()` is one line per problem: where, what was expected, what came.

    Operator action: correct the named values; nothing was started.
    """

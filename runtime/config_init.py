"""Findings about somebody's events -> a commented config that `config check` accepts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.items import Table

from runtime.inference import Findings, SlotFindings, side_of
from settings.config import IMPLICIT_SLOTS, Config
from settings.duration import format_duration
from settings.load import ConfigError

DAY_MS = 86_400_000
DOMAINS_MAX = 100
_AN_IMPRESSION = (
    '{"impression_id": "i1", "event_ms": 1700000000000, "user_id": "u1", "item_id": "a1", '
    '"domain": "feed", "features": {"country": "de"}}'
)
_A_CONVERSION = (
    '{"conversion_id": "c1", "impression_id": "i1", "event_ms": 1700000060000, "user_id": "u1", '
    '"item_id": "a1", "kind": "click", "value": null}'
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")


def render_config(
    found: Findings, *, windows_ms: Mapping[str, int], policy: str, model: str
) -> str:
    """TOML text. `windows_ms` has a window for every kind found.

    Raises ConfigError when the files hold nothing that a model could learn from.
    """
    kinds = _usable(found.kinds)
    if not found.impressions:
        raise ConfigError("--impressions: not one line is an impression, such as " + _AN_IMPRESSION)
    if not kinds:
        raise ConfigError("--conversions: not one line is a conversion, such as " + _A_CONVERSION)
    document = tomlkit.document()
    for line in (
        f"Inferred from {found.impressions} impressions and {found.conversions} conversions"
        + (f"; {found.unreadable} lines were no events." if found.unreadable else "."),
        "Check it with `headwater config check FILE`; every other value: `headwater config show`.",
    ):
        document.add(tomlkit.comment(line))
    _domains(document, found.domains)
    document.add("events", _events(found))
    document.add("join", _join(policy))
    document.add("model", _with(tomlkit.table(), "name", model, "one of `headwater models`"))
    document.add("kinds", _kinds(found.kinds, kinds, windows_ms))
    slots = _slots(found.slots)
    if slots:
        document.add("slots", slots)
    text = tomlkit.dumps(document)
    Config.model_validate(tomlkit.parse(text).unwrap())  # our own promise: it is accepted
    return text


def _usable(names: Counter[str]) -> list[str]:
    return [name for name, _ in names.most_common() if _NAME.fullmatch(name)]


def _domains(document: tomlkit.TOMLDocument, domains: Counter[str]) -> None:
    usable = _usable(domains)[:DOMAINS_MAX]
    left = len(domains) - len(usable)
    if left:
        document.add(tomlkit.comment(f"{left} more domains are modelled, reported as `other`."))
    array = tomlkit.array()
    array.extend(usable)
    document.add("domains", array.multiline(len(usable) > 5))


def _events(found: Findings) -> Table:
    table = tomlkit.table()
    bound_ms = max(DAY_MS, 2 * found.gap_ms_max)
    why = (
        "24h, the least"
        if bound_ms == DAY_MS
        else f"twice the longest silence of a partition ({format_duration(found.gap_ms_max)})"
    )
    _with(table, "future_bound", _rounded_up(bound_ms), why)
    if found.bytes_max > 500_000:
        _with(table, "bytes_max", 2 * found.bytes_max, f"twice the longest line seen")  # noqa: F541
    return table


def _rounded_up(duration_ms: int) -> str:
    return format_duration(-(-duration_ms // 60_000) * 60_000)


def _join(policy: str) -> Table:
    why = {
        "wait": "one final sample per impression, when its last window closes",
        "correct": "an early sample at once, corrected by each conversion, then the final one",
    }
    return _with(tomlkit.table(), "policy", policy, why[policy])


def _kinds(found: Counter[str], kinds: list[str], windows_ms: Mapping[str, int]) -> Table:
    table = tomlkit.table(is_super_table=True)
    for name in kinds:
        table.add(
            name,
            _with(
                tomlkit.table(),
                "window",
                format_duration(windows_ms.get(name, DAY_MS)),
                f"{found[name]} conversions",
            ),
        )
    return table


def _slots(found: Mapping[str, SlotFindings]) -> Table:
    table = tomlkit.table(is_super_table=True)
    for name, slot in found.items():
        described = _slot(name, slot)
        if isinstance(described, str):
            table.add(tomlkit.comment(f"{name!r} is left out: {described}"))
        elif described is not None:
            table.add(name, described)
    return table


def _slot(name: str, slot: SlotFindings) -> Table | str | None:
    """The slot's table; or why it is left out; None when it was never seen with a value."""
    if not slot.types:
        return None
    if name in IMPLICIT_SLOTS:
        return "every impression has it by its own field"
    if not _NAME.fullmatch(name):
        return "its name has characters that a slot's name cannot have"
    kind, count = slot.types.most_common(1)[0]
    if kind == "other":
        return "its values are of no type that a slot can have"
    if kind == "vector" and len(slot.dims) > 1:
        return f"its lists of numbers have {len(slot.dims)} different lengths"
    side, why = side_of(name, slot)
    table = tomlkit.table()
    _with(table, "side", side, why)
    mixed = sum(slot.types.values()) - count
    _with(table, "type", kind, f"{mixed} values were of another type" if mixed else "")
    if kind == "vector":
        _with(table, "dim", next(iter(slot.dims)), "")
    if kind in ("multi", "sequence") and slot.length_max > 20:
        _with(table, "length_max", min(1000, slot.length_max), "the longest seen")
    return table


def _with(table: Table, key: str, value: Any, comment: str) -> Table:
    """Add key = value  # comment."""
    item = tomlkit.item(value)
    if comment:
        item.comment(comment)
    table.add(key, item)
    return table

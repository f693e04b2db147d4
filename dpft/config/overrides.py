"""``--set key=value``: one field of a recipe, changed on the command line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from typing import Any

from dpft.config.explain import shown
from dpft.errors import InputError

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)?")  # a field, or section.field
_MAX_CHARACTERS = 4096


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``values`` with each ``key=value`` set, the last one winning.

    ``key`` is dotted (``privacy.epsilon``). ``value`` is TOML; what is not TOML is taken as text, so that
    ``--set name=trial`` needs no quotes. An empty value removes the key, which is how
    ``--set privacy.epsilon= --set privacy.noise_multiplier=1.0`` turns one choice into another.
    """
    changed = {name: dict(table) if isinstance(table, dict) else table for name, table in values.items()}
    for override in overrides:
        key, value = _parts(override)
        _set(changed, key, value)
    return changed


def _parts(override: str) -> tuple[list[str], str]:
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key):
        raise InputError(f"--set {shown(override)}: expected key=value with a dotted key, such as privacy.epsilon=8.")
    if len(value) > _MAX_CHARACTERS:
        raise InputError(f"--set {shown(key)}: expected at most {_MAX_CHARACTERS} characters; edit the recipe.")
    return key.split("."), value.strip()


def _set(values: dict[str, Any], key: list[str], value: str) -> None:
    *sections, leaf = key
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {shown('.'.join(key))}: {shown(section)} is no table of the recipe.")
    if value == "":
        values.pop(leaf, None)
    else:
        values[leaf] = _read_value(value)


def _read_value(text: str) -> Any:
    """The TOML value, or the text itself where it isn't exactly one TOML value."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # not TOML; RecursionError: thousands of open brackets
        return text
    return table["value"] if set(table) == {"value"} else text

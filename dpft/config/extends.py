"""One level of inheritance: ``extends = "../base.toml"``, resolved before anything is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from dpft.config.explain import shown
from dpft.config.privacy_section import ONE_OF
from dpft.errors import InputError

KEY = "extends"


def with_base(values: dict[str, Any], path: Path | None, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """``values`` over those of the recipe that they extend, table by table; as they are where they extend none.

    ``path`` is the recipe's own file and ``read`` reads another. The base lies in the recipe's folder, in the one
    above, or below either, links resolved, and extends nothing itself. Errors: :class:`InputError`."""
    if KEY not in values:
        return values
    own = {key: value for key, value in values.items() if key != KEY}
    if path is None:
        raise InputError(f"{KEY}: only a recipe that is a file can extend another; write its fields out.")
    base = read(_base_path(values[KEY], path))
    if KEY in base:
        raise InputError(f"{KEY}: the base extends another recipe itself; one level is all there is.")
    return _merged(base, own)


def _base_path(named: object, path: Path) -> Path:
    """The base's file. A recipe may come from elsewhere, so it must not name any file of the machine."""
    if not isinstance(named, str):
        raise InputError(f'{KEY}: expected the path of a recipe in double quotes, such as "../base.toml".')
    plain = named.isprintable() and not any(part in named for part in ("\\", ":", "~"))
    if not plain or PurePosixPath(named).is_absolute() or not named.endswith(".toml"):
        raise InputError(f"{KEY}: expected the relative path of a .toml file, found {shown(named)}.")
    try:
        recipe, base = path.resolve(), (path.parent / named).resolve()
        there = base.is_file()
    except (OSError, RuntimeError):  # a name too long, or links in a circle
        there = False
    if not there:
        raise InputError(f"{KEY}: there is no recipe {shown(named)}, seen from this recipe's folder; check the path.")
    if not base.is_relative_to(recipe.parent.parent):
        raise InputError(
            f"{KEY}: {shown(named)} lies outside this recipe's folder and the one above it; move it there."
        )
    return base


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        under = base.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            merged[key] = {**_that_stay(key, under, value), **value}
        else:
            merged[key] = value
    return merged


def _that_stay(table: str, under: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The base's fields but those that the recipe's own stand in for."""
    if table in ("method", "beside") and own.get("name", under.get("name")) != under.get("name"):
        return {}  # another method has other fields
    if table != "privacy":
        return under
    replaced = {one for pair in ONE_OF for one in pair if any(other in own for other in pair)}
    return {key: value for key, value in under.items() if key not in replaced}

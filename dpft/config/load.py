"""Read a recipe. Every mistake in it becomes one InputError that names the field."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dpft.config.explain import explain
from dpft.config.extends import with_base
from dpft.config.overrides import apply_overrides
from dpft.config.schema import Recipe
from dpft.errors import InputError

MAX_BYTES = 65_536
"""A recipe is a page of text. The two caps also keep the TOML reader, which is quadratic in the number of
dots of one key, from being kept busy by a hostile file."""
MAX_LINE = 4096

M = TypeVar("M", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override (``key=value``) and check a recipe file; InputError for whatever is wrong.

    What it ``extends`` is read too and stands under its own fields."""
    return validate(Recipe, apply_overrides(with_base(_values(path), Path(path), _values), overrides))


def parse_recipe(content: str | bytes, overrides: Iterable[str] = ()) -> Recipe:
    """The same for a recipe's content."""
    return validate(Recipe, apply_overrides(with_base(_toml(_decode(content)), None, _values), overrides))


def validate(model: type[M], values: Mapping[str, Any], prefix: str = "") -> M:
    """Check plain values against a section (or the whole recipe); ``prefix`` names it in errors.

    >>> from dpft.config import OptimizerSection
    >>> validate(OptimizerSection, {"lr": "8"}, "optimizer")
    Traceback (most recent call last):
    dpft.errors.InputError: optimizer.lr (the learning rate): expected a number, found the text "8".
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        fault = explain(error, model, prefix)
    raise fault


def _values(path: str | Path) -> dict[str, Any]:
    return _toml(_decode(_read(Path(path))))


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path}: expected a recipe file (TOML); check the path.")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a usable path"
    raise InputError(f"{str(path)!r}: the recipe can't be read ({reason}); check the path.")


def _decode(content: str | bytes) -> str:
    if isinstance(content, bytes):
        if len(content) > MAX_BYTES:
            raise InputError(f"The recipe is larger than {MAX_BYTES} bytes; expected a page of TOML.")
        try:
            content = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"The recipe isn't UTF-8 at byte {error.start}; save it as UTF-8.") from None
    if len(content) > MAX_BYTES or any(len(line) > MAX_LINE for line in content.split("\n")):
        raise InputError(
            f"The recipe is larger than {MAX_BYTES} bytes or has a line beyond {MAX_LINE} "
            "characters; break long arrays into lines."
        )
    if "\0" in content:
        raise InputError("The recipe holds a NUL character; expected plain TOML text.")
    return content


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # TOMLDecodeError, and int() on thousands of digits
        reason = str(error).split("\n")[0]
    raise InputError(f"The recipe isn't valid TOML: {reason}.")

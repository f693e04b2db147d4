"""Write a recipe as TOML: the ``run.toml`` of a run's folder."""

from __future__ import annotations

import json
from typing import Any

from dpft.config.schema import Recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, defaults included; ``parse_recipe(dump_recipe(r)) == r``.

    Absent values are left out, since TOML has no word for them, and so are a text's fields where records are images.
    """
    values = recipe.model_dump(exclude_none=True, exclude={"data": set(recipe.data.unused)})
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    blocks = [_lines(plain)] + [f"[{name}]\n{_lines(table)}" for name, table in tables.items()]
    return "\n".join(blocks)


def _lines(table: dict[str, Any]) -> str:
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in table.items())


def toml_value(value: object) -> str:
    """A recipe's value as TOML, on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)  # the shortest digits that read back as the same number
        case str():
            # JSON's escapes are TOML's; DEL, which only TOML wants escaped, is refused in every text.
            return json.dumps(value, ensure_ascii=False)
        case list() | tuple():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
        case dict():
            return "{ " + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + " }"
    raise TypeError(f"no TOML for {type(value).__name__}")  # unreachable: sections hold only the above

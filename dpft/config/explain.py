"""From pydantic's list of faults to one sentence: field, expectation, what was found, remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dpft.errors import InputError

_EXPECTED = {
    "string_type": "text in double quotes",
    "string_unicode": "valid Unicode text",
    "string_too_short": "text that isn't empty",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": 'an array such as ["a", "b"]',
    "model_type": "a table",
    "model_attributes_type": "a table",
    "string_pattern_mismatch": "only the characters named here",
}

_SIZES = {
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_long": "at most {max_length} characters",
    "greater_than": "a value above {gt}",
    "greater_than_equal": "a value of at least {ge}",
    "less_than": "a value below {lt}",
    "less_than_equal": "a value of at most {le}",
}


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> InputError:
    """The first fault as an InputError; unknown keys come first, since they often cause the others.

    ``prefix`` is the dotted place of ``model`` in the recipe, empty for a whole recipe.
    """
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    known = dict(field_descriptions(model, prefix))
    place = _place(fault, prefix, known)
    if fault["type"] == "extra_forbidden":
        return unknown_key(place, known)
    return InputError(_sentence(place, fault, known))


def field_descriptions(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted field of a model with its description, depth first."""
    for name, field in model.model_fields.items():
        place = _join(prefix, name)
        yield place, field.description or ""
        for member in _models_in(field.annotation):
            yield from field_descriptions(member, place)


def unknown_key(place: str, known: Mapping[str, str]) -> InputError:
    """A key that no section has, with the nearest that exists: first in its own section, then anywhere."""
    section, _, leaf = place.rpartition(".")
    if leaf.replace("-", "_").lower() == "trust_remote_code":
        return InputError(
            f"{place} can't be set from a recipe: dpft never runs code that comes with a model "
            "or a data set; remove it."
        )
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]
    nearest = elsewhere[0] if len(elsewhere) == 1 else _nearest(leaf, siblings) or _nearest(leaf, known)
    if nearest:
        return InputError(f'{shown(place)} is not a field of a recipe; did you mean "{nearest}"?')
    listed = ", ".join(name.rpartition(".")[2] for name in siblings)
    return InputError(f"{shown(place)} is not a field of a recipe; the fields here are: {listed}.")


def _nearest(leaf: str, names: Iterable[str]) -> str | None:
    leaves = {name.rpartition(".")[2]: name for name in names}
    return next((leaves[match] for match in get_close_matches(leaf, leaves, n=1, cutoff=0.6)), None)


def shown(value: object, limit: int = 80) -> str:
    """A value as one short printable line."""
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _place(fault: ErrorDetails, prefix: str, known: Mapping[str, str]) -> str:
    """The dotted field; list positions become ``[i]`` and a union's tag, no part of a recipe, is dropped."""
    place = prefix
    for position, part in enumerate(fault["loc"], start=1):
        if isinstance(part, int):
            place += f"[{part}]"
        elif _join(place, part) in known or (position == len(fault["loc"]) and fault["type"] == "extra_forbidden"):
            place = _join(place, part)
    return place


def _sentence(place: str, fault: ErrorDetails, known: Mapping[str, str]) -> str:
    reason = fault.get("ctx", {}).get("error")
    if isinstance(reason, ValueError):  # our own checks: the message is whole
        message = str(reason)
        field = message.partition(":")[0]
        own = _join(place, field)
        separator = "." if place and own in known else ": " if place else ""
        return f"{place}{separator}{message}."
    description = known.get(place.partition("[")[0], "")
    meaning = f" ({description})" if description else ""
    if fault["type"] == "missing":
        return f"{place}{meaning} is missing; add it to the recipe."
    return f"{place}{meaning}: expected {_expectation(fault)}, found {_found(fault['input'])}{_hint(fault)}"


def _expectation(fault: ErrorDetails) -> str:
    size = _SIZES.get(fault["type"])
    if size:
        return size.format(**fault["ctx"])
    return _EXPECTED.get(fault["type"], fault["msg"].removeprefix("Input should be "))


def _hint(fault: ErrorDetails) -> str:
    """The nearest of a field's fixed choices, if one is near."""
    choices = re.findall("'([^']*)'", str(fault.get("ctx", {}).get("expected", "")))
    found = fault["input"] if isinstance(fault["input"], str) else ""
    near = get_close_matches(found, choices, n=1)
    return f'; did you mean "{near[0]}"?' if near else "."


def _found(value: object) -> str:
    if isinstance(value, str):
        return f'the text "{shown(value)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number beyond 64 bits"  # Python refuses to print thousands of digits
    if isinstance(value, int | float):
        return repr(value)
    # What is nested may be nested too deeply to print.
    return (
        "a table"
        if isinstance(value, dict)
        else "an array"
        if isinstance(value, list | tuple)
        else type(value).__name__
    )


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)

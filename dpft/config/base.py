"""What all sections of a recipe share: frozen, strict, nothing unknown, every field described."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # tab and newline are allowed: templates use them


class Section(BaseModel):
    """One table of a recipe. Values keep their TOML type: ``"8"`` is text and never the number 8."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=False,
        validate_default=True,
        protected_namespaces=(),
    )


def no_control_characters(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("expected text without NULs and other control characters; take them out")
    return text


def _one_line(text: str) -> str:
    if "\n" in text or "\t" in text:
        raise ValueError("expected one line of text without tabs")
    if text != text.strip():
        raise ValueError("expected text without spaces at its ends")
    return text


def _list_to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _empty_to_none(value: object) -> object:
    return None if value == "" else value


Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(no_control_characters)]
"""Text that may span lines (a template)."""

Word = Annotated[
    str,
    Field(min_length=1, max_length=1024),
    AfterValidator(no_control_characters),
    AfterValidator(_one_line),
]
"""One line: a name, a column, a path."""

OptionalWord = Annotated[Word | None, BeforeValidator(_empty_to_none)]
"""One line, or absent; ``""`` in a recipe means absent."""

Words = Annotated[tuple[Word, ...], BeforeValidator(_list_to_tuple)]
"""A TOML array of text, kept as a tuple so that a recipe stays frozen."""

Numbers = Annotated[tuple[float, ...], BeforeValidator(_list_to_tuple)]
"""A TOML array of finite numbers, kept as a tuple."""

Count = Annotated[int, Field(ge=1, le=10**12)]
"""A whole number of at least 1; the upper end only keeps arithmetic within 64 bits."""

Positive = Annotated[float, Field(gt=0)]
"""A finite number above 0."""


def wrong(field: str, message: str) -> ValueError:
    """The error of a cross-field check; ``field`` is relative to the section that raises it."""
    return ValueError(f"{field}: {message}")

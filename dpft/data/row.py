"""One row of a source, and the texts in it. A bad value is named by its place, never by what it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dpft.config import DataSection
from dpft.errors import InputError

MAX_CHARACTERS = 131_072
"""The longest text taken from one record (and the csv module's own limit); far beyond any ``max_length``."""

_BROKEN = re.compile("[\\0\\ud800-\\udfff]")


class Row(NamedTuple):
    """One row as a source gives it."""

    place: str  # "row 3 of reviews.csv": counted from 1, header not counted
    values: Mapping[str, object]
    folder: Path | None = None  # of the file it stands in; None where there is none


def value_of(row: Row, field: str, name: str) -> object:
    """What the column ``name`` holds, which the recipe's ``field`` asks for."""
    if name not in row.values:
        raise InputError(f'{row.place} has no value for data.{field} = "{name}"; add it or remove the row.')
    return row.values[name]


def text_of(row: Row, field: str, name: str) -> str:
    """The text in the column ``name``."""
    return _checked(row.place, field, name, value_of(row, field, name))


def words_of(row: Row, section: DataSection) -> str:
    """The words of a text to be tagged, joined by single spaces: the column holds them as a list, or as one text."""
    value = value_of(row, "text", section.text)
    if isinstance(value, list):
        if not all(isinstance(word, str) and word and not any(c.isspace() for c in word) for word in value):
            raise InputError(
                f'{row.place}: column "{section.text}" (data.text) has a word that is empty, holds white space or is '
                "not text; correct or remove the row."
            )
        value = " ".join(value)
    return " ".join(_checked(row.place, "text", section.text, value).split())


def _checked(place: str, field: str, name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        fault = "is empty" if value is None or value == "" or isinstance(value, str) else "is not text"
    elif len(value) > MAX_CHARACTERS:
        fault = f"is longer than {MAX_CHARACTERS:,} characters"
    elif _BROKEN.search(value):
        fault = "is not valid Unicode text (a NUL or a lone surrogate)"
    else:
        return value
    raise InputError(f'{place}: column "{name}" (data.{field}) {fault}; correct or remove the row.')

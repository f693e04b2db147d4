"""From a source's rows to records. A bad row is named by its place, never by what it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dpft.config import DataSection
from dpft.data.records import Record
from dpft.errors import InputError

MAX_CHARACTERS = 131_072
"""The longest text taken from one record (and the csv module's own limit); far beyond any ``max_length``."""

_HARMLESS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_BROKEN = re.compile("[\\0\\ud800-\\udfff]")
_NUMBER = re.compile(r"[+-]?\d+")
_MAX_NAMES = 20


class Row(NamedTuple):
    """One row as a source gives it."""

    place: str  # "row 3 of reviews.csv": counted from 1, header not counted
    values: Mapping[str, object]
    folder: Path | None = None  # of the file it stands in; None where there is none


def read_records(rows: Iterable[Row], section: DataSection) -> tuple[Record, ...]:
    """Check each row and make its record; InputError names the first bad row by its place."""
    labels = LabelIds(section.labels)
    return tuple(_record(row, section, labels) for row in rows)


def check_columns(found: Iterable[str], section: DataSection, where: str) -> None:
    """InputError if a column of the recipe is not among ``found``."""
    found = tuple(found)
    for field, name in wanted_columns(section).items():
        if name not in found:
            raise InputError(f'data.{field}: {where} has no column "{name}"; it has {_listed(found)}.')


def wanted_columns(section: DataSection) -> dict[str, str]:
    """The recipe's columns by field name: image, or text and text_pair where set; label."""
    texts = {"text": section.text, "text_pair": section.text_pair}
    columns = {**({"image": section.image} if section.images else texts), "label": section.label}
    return {field: name for field, name in columns.items() if name is not None}


@dataclass(frozen=True)
class LabelIds:
    """Class ids from what a label column holds: a name, or an id 0..k-1 as a number or in digits.

    Where any of the names is itself a whole number (``["1", "2", "3"]``), values are read as names only,
    so that a 1 can't mean two classes.
    """

    labels: tuple[str, ...]

    def find(self, value: object) -> int | None:
        """The class id, or None for what is neither a name nor an id."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return None
        name = str(value) if isinstance(value, str) or abs(value) < 2**63 else ""
        if name in self.labels:
            return self.labels.index(name)
        if name in self._ids:
            return int(name)
        return None

    @cached_property
    def _ids(self) -> tuple[str, ...]:
        if any(_NUMBER.fullmatch(label) for label in self.labels):
            return ()
        return tuple(str(i) for i in range(len(self.labels)))


def _record(row: Row, section: DataSection, labels: LabelIds) -> Record:
    text = _text(row, "text", section.text)
    pair = None if section.text_pair is None else _text(row, "text_pair", section.text_pair)
    return Record(text, pair, label_of(row, section, labels))


def label_of(row: Row, section: DataSection, labels: LabelIds) -> int:
    """The class id of a row; InputError without the value, which is private."""
    label = labels.find(value_of(row, "label", section.label))
    if label is None:
        rest = ", ..." if len(section.labels) > _MAX_NAMES else ""
        expected = ", ".join(section.labels[:_MAX_NAMES]) + rest
        raise InputError(
            f"{row.place}: the label is none of data.labels ({expected}) and no class id; "
            "correct the row or data.labels."
        )
    return label


def value_of(row: Row, field: str, name: str) -> object:
    """What the column ``name`` holds, which the recipe's ``field`` asks for."""
    if name not in row.values:
        raise InputError(f'{row.place} has no value for data.{field} = "{name}"; add it or remove the row.')
    return row.values[name]


def _text(row: Row, field: str, name: str) -> str:
    value = value_of(row, field, name)
    if not isinstance(value, str) or not value.strip():
        fault = "is empty" if value is None or value == "" or isinstance(value, str) else "is not text"
    elif len(value) > MAX_CHARACTERS:
        fault = f"is longer than {MAX_CHARACTERS:,} characters"
    elif _BROKEN.search(value):
        fault = "is not valid Unicode text (a NUL or a lone surrogate)"
    else:
        return value
    raise InputError(f'{row.place}: column "{name}" (data.{field}) {fault}; correct or remove the row.')


def _listed(names: tuple[str, ...]) -> str:
    """Column names for an error; of a file without a header they would be a record, so texts are left out."""
    shown = [name for name in names[:_MAX_NAMES] if _HARMLESS_NAME.fullmatch(name)]
    hidden = len(names) - len(shown)
    return f"the columns {', '.join(shown) or '(none)'}" + (f" and {hidden} with names not shown" if hidden else "")

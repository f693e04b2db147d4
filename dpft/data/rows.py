"""From a source's rows to records. A bad row is named by its place, never by what it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

from dpft.config import DataSection
from dpft.config.task_fields import LANGUAGE_TASKS
from dpft.data.label_values import LabelIds, label_of
from dpft.data.linearise import linearise
from dpft.data.records import Record
from dpft.data.row import MAX_CHARACTERS, Row, text_of, value_of, words_of
from dpft.errors import InputError

__all__ = [
    "MAX_CHARACTERS",
    "LabelIds",
    "Row",
    "check_columns",
    "group_of",
    "no_column",
    "read_records",
    "wanted_columns",
]

_HARMLESS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MAX_NAMES = 20


def read_records(rows: Iterable[Row], section: DataSection) -> tuple[Record, ...]:
    """Check each row and make its record; InputError names the first bad row by its place."""
    labels = LabelIds(section.labels)
    return tuple(_record(row, section, labels) for row in rows)


def check_columns(found: Iterable[str], section: DataSection, where: str) -> None:
    """InputError if a column of the recipe is not among ``found``."""
    found = tuple(found)
    for field, name in wanted_columns(section).items():
        if name not in found:
            raise no_column(f"data.{field}", name, found, where)


def no_column(place: str, name: str, found: Iterable[str], where: str) -> InputError:
    """The error for a column that ``where`` does not have, with the nearest that it has."""
    names = tuple(found)
    near = get_close_matches(name, [other for other in names if _HARMLESS_NAME.fullmatch(other)], n=1)
    guess = f'did you mean "{near[0]}"? It' if near else "it"
    return InputError(f'{place}: {where} has no column "{name}"; {guess} has {_listed(names)}.')


def wanted_columns(section: DataSection) -> dict[str, str]:
    """The recipe's columns by field name: image, or text and text_pair; label or target; group; each where set."""
    shown = {"image": section.image} if section.images else {"text": section.text, "text_pair": section.text_pair}
    learnt = {"target": section.target} if section.task in LANGUAGE_TASKS else {"label": section.label}
    columns = {**shown, **learnt, "group": section.group}
    return {field: name for field, name in columns.items() if name is not None}


def group_of(row: Row, section: DataSection) -> str | None:
    """What the row's unit is called; None where each row is a unit."""
    if section.group is None:
        return None
    value = value_of(row, "group", section.group)
    if isinstance(value, list):  # a meaning representation, say
        value = repr(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(
            f'{row.place}: column "{section.group}" (data.group) is empty or neither text nor a whole number; a row '
            "without a unit can't be protected as one: correct or remove it."
        )
    return str(value)


def _record(row: Row, section: DataSection, labels: LabelIds) -> Record:
    text = _input(row, section)
    pair = None if section.text_pair is None else text_of(row, "text_pair", section.text_pair)
    target = None if section.target is None else text_of(row, "target", section.target)
    label = None if section.task in LANGUAGE_TASKS else label_of(row, section, labels, text)
    return Record(text, pair, label, target, group_of(row, section))


def _input(row: Row, section: DataSection) -> str:
    """The first text: as it stands, written out of a meaning representation, or words joined by spaces."""
    if section.linearise is not None:
        written = _linearised(section.linearise, value_of(row, "text", section.text))
        if written is not None:
            return written
        raise InputError(
            f'{row.place}: column "{section.text}" (data.text) is no meaning representation of the kind '
            f'"{section.linearise}"; correct or remove the row.'
        )
    return words_of(row, section) if section.task == "token-classification" else text_of(row, "text", section.text)


def _linearised(kind: Literal["e2e", "dart"], value: object) -> str | None:
    try:
        return linearise(kind, value)
    except ValueError:  # its text quotes the record
        return None


def _listed(names: tuple[str, ...]) -> str:
    """Column names for an error; of a file without a header they would be a record, so texts are left out."""
    shown = [name for name in names[:_MAX_NAMES] if _HARMLESS_NAME.fullmatch(name)]
    hidden = len(names) - len(shown)
    return f"the columns {', '.join(shown) or '(none)'}" + (f" and {hidden} with names not shown" if hidden else "")

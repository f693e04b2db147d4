"""What a label column holds, in each task. A bad value is named by its place, never by itself: labels are private."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property

from dpft.config import DataSection
from dpft.data.records import Label
from dpft.data.row import Row, value_of
from dpft.errors import InputError

_NUMBER = re.compile(r"[+-]?\d+")
_MAX_NAMES = 20
_LARGEST = 1e30  # its square is a float32


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


def label_of(row: Row, section: DataSection, labels: LabelIds, text: str) -> Label:
    """What the task learns of a row whose first text is ``text``."""
    if section.task == "regression":
        return _number(row, section)
    if section.task == "multilabel":
        return _several(row, section, labels)
    if section.task == "token-classification":
        return _tags(row, section, labels, len(text.split()))
    return class_of(row, section, labels)


def class_of(row: Row, section: DataSection, labels: LabelIds) -> int:
    """The class id of a row."""
    label = labels.find(value_of(row, "label", section.label))
    if label is None:
        raise InputError(
            f"{row.place}: the label is none of data.labels ({_names(section)}) and no class id; "
            "correct the row or data.labels."
        )
    return label


def _number(row: Row, section: DataSection) -> float:
    """A number, or text that is one."""
    value = value_of(row, "label", section.label)
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise InputError(
            f'{row.place}: column "{section.label}" (data.label) is no number of at most {_LARGEST:g}; correct the row.'
        )
    return number


def _several(row: Row, section: DataSection, labels: LabelIds) -> tuple[int, ...]:
    """1 for each label that the row has, 0 for the others; names stand in a list, or between semicolons."""
    found = [labels.find(item) for item in _items(value_of(row, "label", section.label), ";")]
    if None in found:
        raise InputError(
            f"{row.place}: a label is none of data.labels ({_names(section)}) and no id of one; write them as a list, "
            "or between semicolons, and correct the row or data.labels."
        )
    return tuple(int(i in found) for i in range(len(section.labels)))


def _tags(row: Row, section: DataSection, labels: LabelIds, words: int) -> tuple[int, ...]:
    """A class id a word; tags stand in a list, or between spaces."""
    found = [labels.find(item) for item in _items(value_of(row, "label", section.label), None)]
    if len(found) != words:
        raise InputError(f"{row.place}: expected as many tags as words; correct the row.")
    if None in found:
        raise InputError(
            f"{row.place}: a tag is none of data.labels ({_names(section)}) and no id of one; "
            "correct the row or data.labels."
        )
    return tuple(i for i in found if i is not None)


def _items(value: object, between: str | None) -> list[object]:
    """The entries of a list, of a JSON list in text, or of text cut at ``between`` (None: at white space)."""
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        return [] if value is None else [value]
    if value.lstrip().startswith("["):
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, list):
            return read
    return [item.strip() for item in value.split(between) if item.strip()]


def _names(section: DataSection) -> str:
    rest = ", ..." if len(section.labels) > _MAX_NAMES else ""
    return ", ".join(section.labels[:_MAX_NAMES]) + rest

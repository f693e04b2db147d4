"""From the recipe's ``[data]`` table to training and held-out records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Generic, TypeVar

from dpft.config import DataSection
from dpft.data.heldout import split_held_out
from dpft.data.hub import hub_rows
from dpft.data.images import ImageRecord, digit_records, image_records
from dpft.data.local import local_rows
from dpft.data.movie_reviews import movie_review_rows
from dpft.data.records import Keyed, Record
from dpft.data.rows import Row, read_records
from dpft.errors import InputError

R = TypeVar("R", bound=Keyed)


@dataclass(frozen=True)
class Data(Generic[R]):
    """Records and the public words about them.

    ``train`` and ``heldout`` are private, their lengths included; ``labels``, ``unit`` and ``public_id``
    come from the recipe alone.
    """

    train: Sequence[R]
    heldout: Sequence[R]
    labels: tuple[str, ...]
    unit: str
    public_id: str

    def __repr__(self) -> str:
        return f"Data({self.public_id!r})"


TextData = Data[Record]
ImageData = Data[ImageRecord]


def load_text_data(section: DataSection) -> TextData:
    """Read, check and split the records. InputError names a bad row by its place, never by what it holds.

    Each record is treated on its own: nothing is computed from several of them (no deduplication, class
    weights, vocabulary or lengths), so one record more or less changes exactly one item.
    """
    evaluation = _evaluation_rows(section)
    return _split(
        read_records(_train_rows(section), section),
        None if evaluation is None else read_records(evaluation, section),
        section,
    )


def load_image_data(section: DataSection) -> ImageData:
    """The same for images, still as they are encoded; their normalisation is the recipe's, never computed."""
    if section.source == "digits":
        return _split(digit_records(section), None, section)
    evaluation = _evaluation_rows(section)
    return _split(
        image_records(_train_rows(section), section),
        None if evaluation is None else image_records(evaluation, section),
        section,
    )


def _split(records: tuple[R, ...], evaluation: tuple[R, ...] | None, section: DataSection) -> Data[R]:
    train, heldout = split_held_out(records, section.heldout) if evaluation is None else (records, evaluation)
    if not train:
        raise InputError("data: there are no training records; check data.path, data.split and data.heldout.")
    return Data(train, heldout, section.labels, section.unit, public_id(section))


def public_id(section: DataSection) -> str:
    """The data set's name in ledgers and reports, from the recipe alone and without folders.

    >>> public_id(DataSection(source="csv", path="/secret/place/notes-*.csv", labels=("a", "b"), unit="note"))
    'csv:notes-*.csv@train'
    """
    if section.source in ("movie-reviews", "digits"):
        name = ":".join(filter(None, (section.source, section.config)))
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

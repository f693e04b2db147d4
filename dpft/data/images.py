"""Image records: what identifies one, and the sources they come from.

    digits    1,797 handwritten digits, 8 x 8 pixels of 0..16, ten classes, that scikit-learn carries
              (Alpaydin and Kaynak 1998, UCI, test part); nothing is fetched
    files     a column of a CSV, JSON or Parquet file, or of a hub data set, with the names of image files relative
              to the file's folder, or with the encoded images themselves

A record keeps its image as it was read, and is decoded on its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from dpft.config import DataSection
from dpft.data.label_values import LabelIds, class_of
from dpft.data.row import Row, value_of
from dpft.data.rows import group_of
from dpft.errors import InputError

DIGITS_SIDE, DIGITS_PEAK = 8, 16
MAX_BYTES = 64 * 2**20
"""The largest image file that is read."""

_KEY_DOMAIN = b"dpft image key v1"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image as its source has it (an encoded file, or the raw pixels of a digit) and its class.

    ``repr`` is without the image; ``place`` says where it was read, for errors."""

    content: bytes
    label: int  # class id, 0..k-1
    place: str = "a record"
    group: str | None = None

    def __repr__(self) -> str:
        return "ImageRecord(...)"

    @property
    def key(self) -> bytes:
        """32 bytes that identify a record by its image alone; of a row in a group, by the group."""
        if self.group is None:
            return hashlib.sha256(_KEY_DOMAIN + self.content).digest()
        return hashlib.sha256(_KEY_DOMAIN + b" of a group" + self.group.encode("utf-8")).digest()


def digit_records(section: DataSection) -> tuple[ImageRecord, ...]:
    """The digits in scikit-learn's order; InputError without scikit-learn, or with other than ten labels."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError:
        raise InputError(
            'data.source = "digits" comes with scikit-learn, which is not installed; pip install "dpft[images]".'
        ) from None
    found = load_digits()
    ids = LabelIds(section.labels)
    classes = [ids.find(digit) for digit in range(10)]
    if None in classes:
        raise InputError("data.labels: expected names for the digits 0 to 9 in that order, or the digits themselves.")
    pixels = found.images.astype("uint8")
    return tuple(
        ImageRecord(image.tobytes(), classes[target] or 0, f"digit {number}")
        for number, (image, target) in enumerate(zip(pixels, found.target, strict=True), start=1)
    )


def image_records(rows: Iterable[Row], section: DataSection) -> tuple[ImageRecord, ...]:
    """Check each row and make its record; InputError names the first bad row by its place, never a file."""
    labels = LabelIds(section.labels)
    return tuple(
        ImageRecord(_content(row, section), class_of(row, section, labels), row.place, group_of(row, section))
        for row in rows
    )


def _content(row: Row, section: DataSection) -> bytes:
    value = value_of(row, "image", section.image or "")
    if isinstance(value, Mapping):  # how Hugging Face's Parquet files hold an image
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, str) and value and row.folder is not None:
        return _file(row.folder, value, row.place)
    raise InputError(
        f'{row.place}: column "{section.image}" (data.image) holds neither an encoded image nor, in a local file, the '
        "name of one; correct or remove the row."
    )


def _file(folder: Path, name: str, place: str) -> bytes:
    """A file under ``folder``. Its name may itself be private, so that errors give the row's place alone."""
    inside = PurePath(name)
    if "\0" in name or inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"{place}: expected the image's name relative to the file that lists it, without '..'.")
    try:
        with (folder / inside).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError:
        content = b""
    if not content or len(content) > MAX_BYTES:
        raise InputError(
            f"{place}: its image is missing, empty or larger than {MAX_BYTES // 2**20} MiB; correct or remove the row."
        )
    return content

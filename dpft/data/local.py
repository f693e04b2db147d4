"""Local files: CSV, JSON lines, Parquet. Read straight into memory; nothing is written anywhere.

``datasets.load_dataset`` is not used here, for two reasons. It keeps a copy of the raw records in a cache
folder. And it infers a column's type from all of its values (one empty cell turns the ids 0 and 1 into 0.0
and 1.0; the text "NA" becomes null), so that one record would change how the others are read.

No library's exception leaves this file: those of csv, json and pyarrow quote the data, so each is replaced,
outside of its ``except`` block, by an InputError that names the place.
"""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dpft.config import DataSection
from dpft.data.parquet import parquet_columns, parquet_rows
from dpft.data.rows import MAX_CHARACTERS, Row, check_columns
from dpft.errors import InputError

_MAX_LINE_BYTES = 16_000_000


def local_rows(section: DataSection, field: str, pattern: str) -> Iterator[Row]:
    """Rows of every file that ``pattern`` (the recipe's ``data.path`` or ``data.eval_path``) matches.

    Files are read in the order of their names. InputError names a file and a row, never what they hold.
    """
    read = _READERS[section.source]
    for path in _matching_files(field, pattern):
        yield from (row._replace(folder=path.parent) for row in read(path, section))


def column_names(source: str, path: Path) -> tuple[str, ...]:
    """The names of a file's columns: a CSV's header, the keys of the first JSON object, a Parquet file's schema.

    No value is looked at, and nothing behind the header or the first object. The order is the file's."""
    if source == "parquet":
        return parquet_columns(path)
    with _opened(path) as file:
        if source == "csv":
            return _csv_header(_csv_reader(file, path), path)
        for number, line in _lines(file, path):
            if line.strip():
                return tuple(_checked_object(line, number, path))
    raise InputError(f"{path.name}: expected a JSON object in each line, found an empty file.")


def _matching_files(field: str, pattern: str) -> list[Path]:
    if os.path.isfile(pattern):  # a name with brackets is a name first and a glob second
        return [Path(pattern)]
    # A set: "**" can match one file twice, and then one record would count twice.
    files = [Path(name) for name in sorted(set(glob.glob(pattern, recursive=True))) if os.path.isfile(name)]
    if not files:
        raise InputError(
            f'data.{field}: no file matches "{pattern}" (relative to the working directory); check the path.'
        )
    return files


def _csv_rows(path: Path, section: DataSection) -> Iterator[Row]:
    """Rows of an RFC 4180 file with a header; every value is text."""
    with _opened(path) as file:
        reader = _csv_reader(file, path)
        header = _csv_header(reader, path)
        check_columns(header, section, path.name)
        number = 1
        while (values := _next_csv(reader, f"row {number} of {path.name}")) is not None:
            if not values:
                continue  # a blank line
            place = f"row {number} of {path.name}"
            if len(values) != len(header):
                raise InputError(
                    f"{place}: expected {len(header)} values, as many as in the header; check its commas and quotes."
                )
            yield Row(place, dict(zip(header, values, strict=True)))
            number += 1


def _csv_reader(file: BinaryIO, path: Path) -> Iterator[list[str]]:
    return csv.reader((line for _, line in _lines(file, path)), strict=True)


def _csv_header(reader: Iterator[list[str]], path: Path) -> tuple[str, ...]:
    header = _next_csv(reader, f"the header of {path.name}")
    if header is None:
        raise InputError(f"{path.name}: expected a header with the columns' names, found an empty file.")
    if len(set(header)) < len(header):
        raise InputError(f"{path.name}: expected each column once in the header; rename the others.")
    return tuple(header)


def _next_csv(reader: Iterator[list[str]], place: str) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error:
        pass
    raise InputError(
        f"{place} is not valid CSV: expected comma-separated values, quotes closed and doubled "
        f"inside, none longer than {MAX_CHARACTERS:,} characters."
    )


def _json_rows(path: Path, section: DataSection) -> Iterator[Row]:
    """Rows of a file with one JSON object a line."""
    with _opened(path) as file:
        first = True
        for number, line in _lines(file, path):
            if not line.strip():
                continue
            values = _checked_object(line, number, path)
            if first:
                check_columns(values, section, path.name)
                first = False
            yield Row(f"line {number} of {path.name}", values)


def _checked_object(line: str, number: int, path: Path) -> dict[str, Any]:
    values = _json_object(line)
    if values is None:
        raise InputError(
            f"line {number} of {path.name} is not a JSON object with unique keys; "
            "expected JSON lines, one object a line."
        )
    return values


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line, object_pairs_hook=_unique)
    except (ValueError, RecursionError):  # not JSON, endless digits, a key twice; nested too deeply
        return None
    return value if isinstance(value, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("duplicate key")
    return values


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        reason = error.strerror
    raise InputError(f"{path.name} can't be read ({reason}); check the file.")


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its line end) of each line; a byte order mark is dropped."""
    number = 1
    while raw := file.readline(_MAX_LINE_BYTES + 1):
        line = _decoded(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
        if len(raw) > _MAX_LINE_BYTES or line is None:
            raise InputError(
                f"line {number} of {path.name} is not UTF-8 text of at most {_MAX_LINE_BYTES:,} "
                "bytes; convert the file to UTF-8."
            )
        yield number, line
        number += 1


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:  # holds the whole line
        return None


_READERS: dict[str, Callable[[Path, DataSection], Iterator[Row]]] = {
    "csv": _csv_rows,
    "json": _json_rows,
    "parquet": parquet_rows,
}

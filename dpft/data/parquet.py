"""Parquet files: columns typed by the file's own schema, read in slices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpft.config import DataSection
from dpft.data.rows import Row, check_columns, wanted_columns
from dpft.errors import InputError

_ROWS_AT_ONCE = 1024


def parquet_rows(path: Path, section: DataSection) -> Iterator[Row]:
    """Rows of one Parquet file, only the recipe's columns decoded."""
    file = _opened(path)
    check_columns(file.schema_arrow.names, section, path.name)
    batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(wanted_columns(section).values()))
    number = 1
    while (rows := _next_rows(batches, f"{path.name}, from row {number} on,")) is not None:
        for values in rows:
            yield Row(f"row {number} of {path.name}", values)
            number += 1


def parquet_columns(path: Path) -> tuple[str, ...]:
    """The names of the columns, from the file's schema alone."""
    return tuple(_opened(path).schema_arrow.names)


def _opened(path: Path) -> Any:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException):
        pass
    raise InputError(f"{path.name} can't be read as Parquet; check the file.")


def _next_rows(batches: Iterator[Any], place: str) -> list[dict[str, object]] | None:
    import pyarrow

    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException):  # ValueError: text that isn't UTF-8; quotes it
        pass
    raise InputError(f"{place} can't be decoded; check the file.")

"""Examples in a few flat arrays instead of a dict each, on disk where a folder is given.

A dict and its arrays take some 700 bytes for 25 tokens. Here a record takes its tokens, which lie in a file that
is mapped into memory, so that the system may drop and reread them, and 8 bytes a field. The file has no name: nobody
else opens it, and nothing is left of it when the process ends, in whatever way.
"""

from __future__ import annotations

import errno
import io
import mmap
import tempfile
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpft.errors import TrainingError

E = TypeVar("E", bound=Mapping[str, Any])


class Packed(Sequence[E]):
    """``examples`` one by one, as they came: each a dict of numbers, and of arrays that have one type a field and one
    shape but for their first axis. With ``folder`` the arrays are mapped from there; they are read-only.

    Raises :class:`TrainingError` where they do not fit the disk. That depends on the number of tokens of all records
    together, which the guarantee does not cover, and nothing else is said of them."""

    def __init__(self, examples: Iterable[E], folder: Path | None = None) -> None:
        self._count, self._columns = 0, dict[str, _Arrays | _Numbers]()
        try:
            self._fill(examples, folder)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise TrainingError(
                f"The records' tokens do not fit the disk of {folder}: make room there. Nothing was trained."
            ) from None

    def _fill(self, examples: Iterable[E], folder: Path | None) -> None:
        try:
            for example in examples:
                if not self._count:
                    self._columns = {name: _column(value, folder) for name, value in example.items()}
                assert example.keys() == self._columns.keys()
                for name, column in self._columns.items():
                    column.append(example[name])
                self._count += 1
        finally:
            for column in self._columns.values():
                column.close()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError("there are not so many records")
        return {name: column[index % self._count] for name, column in self._columns.items()}

    def __repr__(self) -> str:
        return "Packed(...)"


def _column(value: Any, folder: Path | None) -> _Arrays | _Numbers:
    return _Arrays(value, folder) if isinstance(value, np.ndarray) else _Numbers(value)


class _Numbers:
    """A number a record: whole, or with a point."""

    def __init__(self, first: float) -> None:
        self._values: array[Any] = array("q" if isinstance(first, int) else "d")

    def append(self, value: float) -> None:
        self._values.append(value)

    def close(self) -> None:
        """No more comes."""

    def __getitem__(self, i: int) -> float:
        return self._values[i]  # type: ignore[no-any-return]


class _Arrays:
    """An array a record, one behind the other."""

    def __init__(self, first: NDArray[Any], folder: Path | None) -> None:
        self._type, self._shape = first.dtype, first.shape[1:]
        self._ends = array("q", [0])
        self._to: Any = tempfile.TemporaryFile(dir=folder) if folder else io.BytesIO()  # noqa: SIM115

    def append(self, value: NDArray[Any]) -> None:
        assert (value.dtype, value.shape[1:]) == (self._type, self._shape)
        self._ends.append(self._ends[-1] + len(value))
        self._to.write(np.ascontiguousarray(value).tobytes())

    def close(self) -> None:
        """No more comes."""
        with self._to as file:
            if isinstance(file, io.BytesIO):
                buffer: Any = file.getvalue()
            else:
                file.flush()
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""
        self._flat = np.frombuffer(buffer, self._type).reshape(-1, *self._shape)

    def __getitem__(self, i: int) -> NDArray[Any]:
        return self._flat[self._ends[i] : self._ends[i + 1]]

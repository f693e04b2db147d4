"""Recorded outputs on disk: one flat array of rows, memory-mapped, in which each record has a run of its own.

N records of t_1 .. t_N tokens, W numbers a token: rows [t_1 + .. + t_N + 1, W]; the last row is zero and is what
padding gets. Whole or not there: rows and records are written and flushed before the file that describes them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpft.cache.folder import META, RECORDS, ROWS, delete
from dpft.errors import DpftError, InputError
from dpft.files import private_folder, read_json, sync_folder, write_atomic, write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HASH = 16  # bytes a record
_SPARE = 50_000_000  # bytes that stay free: the ledger and the checkpoints need room too

Write = Callable[[int, Tensor], None]
"""Write a record's rows [t, W]."""


@dataclass(frozen=True)
class Layout:
    """What a store holds. ``key`` names the model, ``points`` the places; ``lengths`` [N] are tokens a record (1 where
    it has one vector), ``examples`` the records' inputs, of which hashes are kept."""

    key: str
    points: tuple[str, ...]
    width: int
    dtype: str
    lengths: NDArray[np.int64]
    examples: Sequence[Mapping[str, Any]]

    @property
    def row_bytes(self) -> int:
        return self.width * DTYPES[self.dtype].itemsize

    @property
    def rows(self) -> int:
        return int(self.lengths.sum()) + 1

    def described(self) -> dict[str, Any]:
        return {
            "format": 1,
            "key": self.key,
            "points": list(self.points),
            "width": self.width,
            "dtype": self.dtype,
            "records": len(self.lengths),
            "tokens": self.rows - 1,
        }

    def index(self, salt: bytes) -> bytes:
        """Lengths and hashes. Keyed with the cache's own salt: a plain hash of a short record would tell it."""
        hashes = b"".join(_hash(example, salt) for example in self.examples)
        return self.lengths.astype("<i8").tobytes() + hashes


class Store:
    """An open cache. Its rows are mapped, not read: memory holds what was used lately."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._starts = np.concatenate([[0], np.cumsum(layout.lengths)])
        self._lengths = layout.lengths
        shape, dtype = (layout.rows, layout.width), DTYPES[layout.dtype]
        flat = torch.from_file(str(folder / ROWS), shared=False, size=math.prod(shape), dtype=dtype)
        self._rows = flat.view(shape)

    def gather(self, records: Sequence[int], mask: Tensor | None) -> Tensor:
        """The rows of ``records``. With ``mask`` [B, T] each record's stand where it is not zero, [B, T, W], zeros
        elsewhere; without, all records are equally long: [B, t, W]."""
        chosen = np.asarray(records, dtype=np.int64)
        lengths = self._lengths[chosen]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        # Record after record: its start, and then one more for each token.
        rows = torch.from_numpy(np.arange(total) + np.repeat(self._starts[chosen] - (ends - lengths), lengths))
        if mask is None:
            B, T = len(chosen), int(lengths[0]) if len(chosen) else 1
            return self._rows.index_select(0, rows).view(B, T, self._rows.shape[1])
        index = torch.full(mask.shape, len(self._rows) - 1, dtype=torch.int64)
        index[mask != 0] = rows
        return self._rows.index_select(0, index.flatten()).view(*mask.shape, self._rows.shape[1])


def reopened(folder: Path, layout: Layout) -> Store | None:
    """The cache in ``folder`` if it is whole, undamaged, of this model and of these very records, else None."""
    try:
        meta = read_json(folder / META)
        index = (folder / RECORDS).read_bytes()
        same = {name: meta.get(name) for name in layout.described()} == layout.described()
        if not same or index != layout.index(bytes.fromhex(meta["salt"])) or meta["rows"] != _sha256(folder / ROWS):
            return None
    except (DpftError, OSError, KeyError, TypeError, ValueError):
        return None
    if (folder / ROWS).stat().st_size != layout.rows * layout.row_bytes:
        return None
    return Store(folder, layout)


def written(folder: Path, layout: Layout, fill: Callable[[Write], None]) -> Store:
    """A new cache in ``folder``, in place of any that is there. ``fill`` writes every record once.

    Raises :class:`InputError` where it does not fit the disk. That it does not depends on the number of tokens of all
    records together, and is all that is said of it: whoever sees this refusal, and knows what was free, learns a bound
    on that sum, which the guarantee does not cover. Interrupted at any point, it leaves no cache."""
    private_folder(folder)
    delete(folder)
    private_folder(folder)
    salt, part = secrets.token_bytes(32), folder / f"{ROWS}.part"
    try:
        _check_room(folder, layout)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _reserve(descriptor, layout.rows * layout.row_bytes)
            fill(_writer(descriptor, layout))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        digest = _sha256(part)
        os.replace(part, folder / ROWS)
        sync_folder(folder)
        write_atomic(folder / RECORDS, layout.index(salt), private=True)
        write_json(folder / META, {**layout.described(), "salt": salt.hex(), "rows": digest}, private=True)
    except BaseException as error:
        delete(folder)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(folder.parent, layout) from None
        raise
    return Store(folder, layout)


def _writer(descriptor: int, layout: Layout) -> Write:
    starts = np.concatenate([[0], np.cumsum(layout.lengths)]).tolist()

    def write(record: int, rows: Tensor) -> None:
        if rows.shape != (layout.lengths[record], layout.width):
            raise InputError(
                "A record's frozen outputs have another number of tokens than the record, so they can't be cached; "
                "leave [cache] out."
            )
        # Not looked at: what is not finite, or not in this type, is one private record's; clipping counts it as zero.
        kept = rows.to(DTYPES[layout.dtype]).cpu().contiguous()
        data = memoryview(kept.view(torch.uint8).numpy().tobytes())
        at = starts[record] * layout.row_bytes
        while data:  # a disk may take less than it is given
            done = os.pwrite(descriptor, data, at)
            data, at = data[done:], at + done

    return write


def _reserve(descriptor: int, size: int) -> None:
    """The file at its full length, zero, its blocks taken where the system can: later writes then fit."""
    os.ftruncate(descriptor, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


def _check_room(folder: Path, layout: Layout) -> None:
    if shutil.disk_usage(folder).free < layout.rows * layout.row_bytes + _SPARE:
        raise _no_room(folder, layout)


def _no_room(folder: Path, layout: Layout) -> InputError:
    """Says what a token takes and not what all records take, which would tell how long they are."""
    free = shutil.disk_usage(folder).free / 1e6
    return InputError(
        f"The cache does not fit the disk: it takes {layout.row_bytes} bytes for every token of every record, and "
        f"{free:.0f} MB are free. Make room, choose a smaller cache.dtype, or leave [cache] out."
    )


def _hash(example: Mapping[str, Any], salt: bytes) -> bytes:
    """Of all that a model reads; the label is no part of it."""
    found = hashlib.blake2b(key=salt, digest_size=_HASH)
    for name in sorted(set(example) - {"label", "labels"}):
        value = np.ascontiguousarray(example[name])
        found.update(json.dumps([name, str(value.dtype), value.shape]).encode())
        found.update(value.tobytes())
    return found.digest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

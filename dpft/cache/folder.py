"""The files of a cache, seen from outside: where a run keeps them, what they say, and their deletion. No torch.

<run>/private/cache/      mode 0700, as private as the records themselves; never exported
  meta.json               the key, the layout and the hashes; written last: without it there is no cache
  records.bin             each record's number of tokens and keyed hash
  rows.bin                the recorded outputs, token after token, and a row of zeros
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpft.cache.shared import caches_in
from dpft.errors import DpftError, InputError
from dpft.files import read_json

META, RECORDS, ROWS = "meta.json", "records.bin", "rows.bin"
_FILES = (META, RECORDS, ROWS)  # deleted in this order: what is left of a deletion that stopped is no cache


def cache_of(run: Path) -> Path:
    """Where a run's cache is, if it has one."""
    return run / "private" / "cache"


def find(path: Path) -> list[Path]:
    """The caches in ``path``: a run's folder, a folder of runs, one that runs share, or a cache itself.

    InputError where there is no such folder; an empty list where it holds none."""
    if not path.is_dir():
        raise InputError(f"Expected {path} to be a run's folder, a folder of runs, or cache.folder; there is none.")
    if path.name == "cache" and path.parent.name == "private":
        return [path]
    if shared := caches_in(path):
        return shared
    candidates = [path, *sorted(inner for inner in path.iterdir() if inner.is_dir())]
    return [found for run in candidates if (found := cache_of(run)).is_dir()]


def delete(folder: Path) -> int:
    """Remove a cache; the bytes that became free. Files that are no cache's stay, and so then does the folder.

    A run that is reading it goes on; one that is resumed computes it anew."""
    freed = 0
    for path in _there(folder):
        freed += path.stat().st_size
        path.unlink()
    with suppress(OSError):
        folder.rmdir()
    return freed


@dataclass(frozen=True)
class Description:
    """What ``dpft cache show`` says of one. ``whole``: it was written to its end (its hashes are checked on use)."""

    folder: str
    whole: bool
    megabytes: float
    records: int | None = None
    tokens: int | None = None
    width: int | None = None
    dtype: str | None = None
    points: tuple[str, ...] = ()


def describe(folder: Path) -> Description:
    size = sum(path.stat().st_size for path in _there(folder)) / 1e6
    try:
        meta = read_json(folder / META)
        numbers = (meta["records"], meta["tokens"], meta["width"])
        return Description(str(folder), True, size, *numbers, meta["dtype"], tuple(meta["points"]))
    except (DpftError, KeyError, TypeError):
        return Description(str(folder), False, size)


def _there(folder: Path) -> Iterator[Path]:
    for name in _FILES:
        for path in (folder / name, folder / f"{name}.part"):
            if path.is_file():
                yield path

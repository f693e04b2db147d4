"""A folder of caches that several runs share, outside of their own: ``[cache] folder``.

<folder>/                    mode 0700, as private as the records themselves
  lock                       held by the run that opens or fills a cache here; another one waits
  <key>-<dtype>/             one cache (folder.py) for each model, place of recording and number type

A cache holds one set of records: a run on others puts its own in the place. Who reads the old one meanwhile goes on.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpft.errors import InputError
from dpft.files import private_folder

_LOCK = "lock"
_NAME = re.compile(r"[0-9a-f]{16}-(float32|bfloat16|float16)")
_LEAVES = ("run.toml", "privacy.json", "dpft.json")  # marks of a run, an export, an adapter: folders that are handed on


def shared_place(root: Path, key: str, dtype: str) -> Path:
    """The cache for ``key`` in the shared folder ``root``, which is made and closed to all but its owner.

    Raises :class:`InputError` where ``root`` lies in what is handed on to others, where something else is in it, and
    where it belongs to somebody else."""
    for around in (root.resolve(), *root.resolve().parents):
        inside = root.resolve().relative_to(around).parts
        if inside[:1] != ("private",) and any((around / name).is_file() for name in _LEAVES):
            raise _wrong(root, f"lies in {around.name}, which is made to be handed on, and a cache is private")
    if root.exists() and (not root.is_dir() or any(not _ours(path) for path in root.iterdir())):
        raise _wrong(root, "holds something else, which would be closed to others with it")
    try:
        private_folder(root)
    except OSError as error:
        raise _wrong(root, f"can't be made or closed to others ({error.strerror})") from None
    return root / f"{key[:16]}-{dtype}"


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Until it is left, no other run opens or fills a cache in the shared folder around ``place``."""
    descriptor = os.open(place.parent / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def caches_in(root: Path) -> list[Path]:
    """The caches in a shared folder; none where it is no such folder."""
    return sorted(path for path in root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))


def _ours(path: Path) -> bool:
    return path.name == _LOCK if path.is_file() else _NAME.fullmatch(path.name) is not None


def _wrong(root: Path, why: str) -> InputError:
    return InputError(f"cache.folder={str(root)!r} {why}; choose a folder of its own, or leave the field out.")

"""What records are, so that two places can be told to hold the same ones: a file's bytes, a hub's split.

What is made without privacy on records that are declared public says in its metadata which they were, and a run whose
private records are the same ones is refused (``dpft/declared.py``). The hash is of a public file; one of a private file
is never written down. Another file with the same records in it is another file here, and so is another revision of a
hub's split: this catches a mistake, and no intention.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpft.config import DataSection
from dpft.config.source_fields import FILE_SOURCES
from dpft.data.load import public_id
from dpft.errors import InputError


@dataclass(frozen=True)
class Origin:
    """``name`` for people, without folders; ``parts``, each "sha256:..." of a file or the name of a split."""

    name: str
    parts: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "parts": sorted(self.parts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Origin:
        """Raises KeyError or TypeError for what is none."""
        return cls(str(values["name"]), frozenset(map(str, values["parts"])))


def origin_of(section: DataSection) -> Origin:
    """Of all that a section names, held-out records included. Reads local files whole; fetches nothing."""
    if section.source in FILE_SOURCES:
        return Origin(public_id(section), file_parts(local_files(section)))
    if section.source == "hub":
        splits = filter(None, (section.split, section.eval_split))
        return Origin(
            public_id(section), frozenset(f"hub:{section.path}:{section.config or ''}@{split}" for split in splits)
        )
    return Origin(public_id(section), frozenset({section.source}))


def file_parts(paths: Iterable[Path]) -> frozenset[str]:
    """Of files; those that are not there count as none, and whoever reads them says so."""
    return frozenset("sha256:" + _sha256(path) for path in paths if path.is_file())


def local_files(section: DataSection) -> set[Path]:
    """The local files that a section names, wherever links lead."""
    if section.source not in FILE_SOURCES:
        return set()
    paths = [p for p in (section.path, section.eval_path) if p]
    return {Path(found).resolve() for p in paths for found in (p, *glob.glob(p, recursive=True))}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror
    raise InputError(f"{path.name} can't be read ({reason}); check the file.")

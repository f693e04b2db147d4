"""Which recipes are meant."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from dpft.config import Recipe, load_recipe
from dpft.errors import DpftError, InputError

ROOT = Path("recipes")


def find(pattern: str | None, root: Path = ROOT) -> list[Path]:
    """Recipe files, sorted: with a pattern those whose path has it, as a part or as a glob, else those that have an
    ``[expected]`` table. The path of a file or of a folder is a pattern too.

    Errors: :class:`InputError` where there is none."""
    place = Path(pattern) if pattern else root
    if pattern and place.is_file():
        return [place]
    if place.is_dir():
        found = sorted(place.rglob("*.toml"))
        found = found if pattern else [path for path in found if _published(path)]
    else:
        found = [path for path in sorted(root.rglob("*.toml")) if _matches(path, pattern or "")]
    if not found:
        what = f"that {pattern!r} names" if pattern else "with published figures"
        raise InputError(f"There is no recipe {what} under {root}/. Give a path, a part of one, or a glob.")
    return found


def readable(paths: list[Path], overrides: list[str]) -> Iterator[tuple[Path, Recipe | str]]:
    """Each recipe, or the sentence that says what is wrong with it."""
    for path in paths:
        try:
            yield path, load_recipe(path, overrides)
        except DpftError as error:
            yield path, str(error)


def _matches(path: Path, pattern: str) -> bool:
    text = path.as_posix()
    return pattern in text or any(fnmatchcase(text, glob) for glob in (pattern, f"*/{pattern}", f"*/{pattern}.toml"))


def _published(path: Path) -> bool:
    """Whether a recipe has published figures; a broken one counts, since it can't say."""
    try:
        return load_recipe(path).expected is not None
    except DpftError:
        return True

"""Which fields of ``[data]`` each source of records has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dpft.config.base import wrong

if TYPE_CHECKING:
    from dpft.config.data_section import DataSection

FILE_SOURCES = ("csv", "json", "parquet")
REVIEWS = {None: ("text", "label", "rating", "sentiment", "traits"), "pairs": ("text", "text_pair", "label"),
           "words": ("text", "tags")}  # fmt: skip
"""The movie reviews' configurations and their columns; see ``dpft/data/movie_reviews.py``."""

_OF_FILES = ("path", "revision", "eval_split", "eval_path")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def check_source(section: DataSection) -> None:
    """Raise ValueError, for the section's own checks, where a field does not go with the source."""
    refused = {
        "movie-reviews": (*_OF_FILES, "image", "group"),
        "digits": (*_OF_FILES, "config", "image", "group"),
        "hub": ("eval_path",),
    }.get(section.source, ("config", "revision", "eval_split"))
    for field in refused:
        if getattr(section, field) is not None:
            raise wrong(field, f'not used with source = "{section.source}"; leave it out')
    if section.source != "hub" and section.split != "train":
        raise wrong("split", f'only "train" exists with source = "{section.source}"; leave it out')
    if section.source == "movie-reviews":
        _check_reviews(section)
    elif section.source == "digits":
        if len(section.labels) != 10:
            raise wrong("labels", "expected the names of the ten digits, 0 first")
        if section.label != "label":
            raise wrong("label", 'not used with source = "digits"; leave it out')
    elif section.path is None:
        what = "the name of a data set" if section.source == "hub" else "a file path or a glob"
        raise wrong("path", f'expected {what} with source = "{section.source}"; set data.path')
    elif section.source == "hub":
        _check_hub_name(section.path)
    else:
        _check_local("path", section.path)
        _check_local("eval_path", section.eval_path)


def _check_reviews(section: DataSection) -> None:
    if section.config not in REVIEWS:
        names = ", ".join(name for name in REVIEWS if name)
        raise wrong("config", f"the movie reviews have the configurations {names}; choose one, or leave it out")
    if section.task == "classification" and len(section.labels) != 2:
        raise wrong("labels", "expected the names of two classes, the negative one first")


def _check_hub_name(path: str) -> None:
    if not _HUB_NAME.fullmatch(path) or ".." in path:
        raise wrong(
            "path",
            'expected a hub name such as "nyu-mll/glue"; for files use source = "csv", "json" or "parquet"',
        )


def _check_local(field: str, path: str | None) -> None:
    # "://" and "::" would be read by file-system libraries as addresses; private data stays local.
    if path is not None and ("://" in path or "::" in path):
        raise wrong(field, "expected a local file path or glob, no address; fetch the file first")

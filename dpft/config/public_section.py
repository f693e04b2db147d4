"""The ``[public]`` table: records that are declared public, for a method that looks at some before it trains."""

from __future__ import annotations

import os
from typing import Self

from pydantic import Field, model_validator

from dpft.config.base import Word, wrong
from dpft.config.data_section import DataSection


class PublicSection(DataSection):
    """The same fields as ``[data]``. Nothing is held out of these records, and no unit of theirs is protected."""

    unit: Word = Field(default="record", description="what one record is; nothing is promised about it")

    @model_validator(mode="after")
    def _all_of_them_are_used(self) -> Self:
        for field in ("eval_split", "eval_path", "heldout"):
            if getattr(self, field):
                raise wrong(field, "nothing is evaluated on the records of [public]; leave it out")
        return self


def check_apart(public: PublicSection, data: DataSection) -> None:
    """Raise ValueError, for a recipe's own checks, where ``public`` can't be what [data] is not, or not fit it."""
    if (public.images, public.task, public.labels) != (data.images, data.task, data.labels):
        raise wrong("public.labels", "expected records of the same kind as [data] and the same labels, for one model")
    if public.source != data.source:
        return
    splits = {(_place(data), data.config, data.split), (_place(data), data.config, data.eval_split)}
    paths = {_place(data), data.eval_path and os.path.normpath(data.eval_path)}
    same = (_place(public), public.config, public.split) in splits if data.source == "hub" else _place(public) in paths
    if same:
        raise wrong(
            "public",
            "the records of [data] that train or are held out are not public; name others, or a method that needs none",
        )


def _place(section: DataSection) -> str | None:
    return os.path.normpath(section.path) if section.path and section.source != "hub" else section.path

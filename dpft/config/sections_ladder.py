"""The ``[method]`` table of ladder side-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dpft.config.base import Section
from dpft.config.bottleneck_section import Width


def _to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _rising(places: tuple[int, ...]) -> tuple[int, ...]:
    if list(places) != sorted(set(places)):
        raise ValueError("expected places of blocks, from 0, in rising order")
    return places


_Place = Annotated[int, Field(ge=0, le=65_535)]
Places = Annotated[
    tuple[_Place, ...], BeforeValidator(_to_tuple), Field(max_length=65_536), AfterValidator(_rising)
]  # fmt: skip


class LadderSection(Section):
    """Ladder side-tuning: Sung et al. 2022."""

    name: Literal["lst"] = Field(description="the method")
    reduction: Width = Field(default=8, description="how many times narrower the side network is than the model")
    keep: Places = Field(
        default=(), description="places of the blocks, from 0, that have a side block; [] = all of them"
    )
    init: Literal["prune", "random", "fisher"] = Field(
        default="prune", description='how side blocks start; "fisher" wants public records'
    )
    start: Literal["backbone", "published"] = Field(
        default="backbone", description="whether the output is added to the backbone's, from zero, or replaces it"
    )

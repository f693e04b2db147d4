"""The ``[start]`` table: a run that goes on from what an earlier private one released."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dpft.config.base import Section, Word, wrong


class StartSection(Section):
    """Where a second phase begins. Both phases spend on the same records, so the recipe needs ``[ledger]``."""

    run: Word = Field(description="the folder of the finished run that this one goes on from")
    prune: float | None = Field(
        default=None, gt=0, lt=1, description="the share of the frozen weights to drop first; absent = none"
    )
    heads: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        default=None, description="instead of prune: the attention heads to drop in each layer; absent = none"
    )
    scope: Literal["global", "layer"] = Field(
        default="global", description="whether prune is a share of all layers together or of each layer"
    )

    @model_validator(mode="after")
    def _one_pruning(self) -> Self:
        if self.prune is not None and self.heads is not None:
            raise wrong("prune", "expected either prune or heads, found both; leave one out")
        return self

    @property
    def prunes(self) -> bool:
        """Whether anything of the frozen weights is dropped."""
        return self.prune is not None or self.heads is not None

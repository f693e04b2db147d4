"""The ``[method]`` table of sparse adapters."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dpft.config.base import Positive, wrong
from dpft.config.bottleneck_section import BottleneckSection


class SparseAdapterSection(BottleneckSection):
    """Adapters of which a part of the weights exists: He et al. 2022."""

    name: Literal["sparse-adapter"] = Field(description="the method")
    density: float = Field(default=0.5, gt=0, le=1, description="the share of the adapters' weights that is kept")
    mask: Literal["random", "magnitude", "synflow", "snip", "grasp"] = Field(
        default="random", description="the score that chooses which weights are kept"
    )
    mask_steps: Annotated[int, Field(ge=0, le=10**6)] = Field(
        default=0, description='private steps that pay for the gradients of mask = "snip"; 0 = public records'
    )
    input_norm: bool = Field(default=False, description="whether a LayerNorm of its own precedes each adapter")
    init: Literal["normal", "xavier", "zero"] = Field(default="normal", description="how the added layers start")
    init_std: Positive = Field(default=0.02, description='the standard deviation of init = "normal"')

    @model_validator(mode="after")
    def _mask_has_its_scores(self) -> Self:
        if self.mask_steps and self.mask != "snip":
            raise wrong("mask_steps", 'pays for the gradients of mask = "snip" alone; leave it out')
        if self.init == "zero" and self.mask != "random":
            raise wrong("init", f'with "zero" the up-projections score 0 by mask = "{self.mask}"; take "normal"')
        return self

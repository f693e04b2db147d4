"""The fields that the ``[method]`` tables of adapters of any kind share."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dpft.config.base import Section, wrong
from dpft.config.layer_names import Paths

Activation = Literal["gelu", "gelu_new", "relu", "silu"]
Placement = Literal["both", "ffn", "attention"]
Width = Annotated[int, Field(ge=1, le=65_536)]


class BottleneckSection(Section):
    """What adapters of any kind share."""

    name: str = Field(description="the method")
    bottleneck: Width | None = Field(default=None, description="the width inside an adapter; absent = by reduction")
    reduction: Width | None = Field(
        default=None, description="the width outside over the width inside; absent = the method's usual size"
    )
    bias: bool = Field(default=True, description="whether the added layers have biases")
    activation: Activation = Field(default="gelu", description="the function between the added layers")
    placement: Placement = Field(default="both", description="which sublayers an adapter follows")
    before_dropout: bool = Field(default=False, description="whether the attention's dropout follows its adapter")
    norms: bool = Field(default=False, description="whether the model's normalisation layers train too")
    targets: Paths = Field(default=(), description="ends of names of the modules to adapt; [] = by placement")
    blocks: Width | None = Field(default=None, description="how many of the last blocks it is in; absent = all")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.bottleneck is not None and self.reduction is not None:
            raise wrong("bottleneck", "expected either bottleneck or reduction, found both; leave one out")
        return self

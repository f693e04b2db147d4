"""The ``[method]`` table of DSEE and the ``[start]`` table, by which a run goes on from an earlier one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpft.config.base import Positive, Section
from dpft.config.layer_names import Parts


class DSEESection(Section):
    """Low-rank pairs and a few single weights: Chen et al. 2021."""

    name: Literal["dsee"] = Field(description="the method")
    rank: int = Field(default=16, ge=1, le=65_536, description="the rank of each added pair of factors")
    alpha: Positive = Field(default=32.0, description="numerator of the scaling alpha/rank")
    targets: Parts = Field(default=(), description="last components of module names; [] = query and value")
    nonzeros: int = Field(default=64, ge=1, le=65_536, description="single weights that train in each layer")
    support: Literal["decompose", "magnitude", "random"] = Field(
        default="decompose", description="how the places of the single weights are chosen"
    )
    pruned: bool = Field(default=False, description="whether masks over the frozen weights are kept; [start] sets it")

"""The ``[method]`` table of rational activation functions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpft.config.base import Section

Degree = Annotated[int, Field(ge=1, le=12)]


class RAFTSection(Section):
    """Rational activation functions: Fang et al. 2022."""

    name: Literal["raft"] = Field(description="the method")
    numerator: Degree = Field(default=5, description="the degree of the numerator")
    denominator: Degree = Field(default=4, description="the degree of the denominator")
    range: float = Field(
        default=6.0, ge=0.1, le=1000, description="inputs from -range to range are where the functions are fitted"
    )
    version: Literal["safe", "smooth"] = Field(
        default="safe", description="whether the denominator has kinks (safe, as published) or none"
    )
    tails: Literal["base", "rational"] = Field(
        default="base", description="what goes on beyond the range: the old function, or the rational one"
    )
    scaling: Literal["private", "none"] = Field(
        default="private", description="whether coefficients are scaled to gradients of one size"
    )

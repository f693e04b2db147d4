"""The ``[expected]`` table: what was published about such a run, and how well each figure is known.

It changes nothing about the run; ``dpft reproduce`` puts it beside what comes out.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dpft.config.base import Count, OptionalWord, Section, Word

_Value = Annotated[float, Field(ge=0)]


class Figure(Section):
    """One published number."""

    value: _Value = Field(description="the published value")
    provenance: Word = Field(description='how it is known, such as "verified (abstract)" or "unverified (memory)"')


class CountFigure(Section):
    """One published whole number."""

    value: Count = Field(description="the published number")
    provenance: Word = Field(description='how it is known, such as "computed"')


class OtherMetrics(Section):
    """Further metrics of written texts, as published: some authors give shares, others per cent."""

    perplexity: _Value | None = Field(default=None, description="perplexity of held-out texts")
    bleu: _Value | None = Field(default=None, description="BLEU")
    nist: _Value | None = Field(default=None, description="NIST")
    meteor: _Value | None = Field(default=None, description="METEOR")
    rouge_l: _Value | None = Field(default=None, description="ROUGE-L")
    cider: _Value | None = Field(default=None, description="CIDEr")
    ter: _Value | None = Field(default=None, description="translation edit rate")
    provenance: Word = Field(description="how they are known")


class ExpectedSection(Section):
    """Published figures, each with its provenance; what was not published is left out."""

    source: Word = Field(description="where the figures were published")
    row: OptionalWord = Field(default=None, description="the name of these settings in a table of reference data")
    metric: Word = Field(description="what private and nonprivate measure, in per cent")
    private: Figure | None = Field(default=None, description="the result with privacy")
    nonprivate: Figure | None = Field(default=None, description="the best result without privacy, by any method")
    same_method: Figure | None = Field(default=None, description="the result of this method without privacy")
    epsilon_claimed: Figure | None = Field(default=None, description="the epsilon that was claimed")
    delta_claimed: Figure | None = Field(default=None, description="the delta that was claimed")
    parameters: CountFigure | None = Field(default=None, description="the number of trained parameters")
    rate_claimed: Figure | None = Field(default=None, description="the rate that the accounting supposes")
    noise_claimed: Figure | None = Field(default=None, description="the noise that the claim is for, in units of clip")
    epsilon_pld: Figure | None = Field(
        default=None, description="the epsilon by a PLD accountant, at the delta claimed, with Poisson sampling"
    )
    also_private: OtherMetrics | None = Field(default=None, description="further metrics with privacy")
    also_nonprivate: OtherMetrics | None = Field(default=None, description="further metrics without privacy")
    remark: OptionalWord = Field(default=None, description="what must be said beside the figures")

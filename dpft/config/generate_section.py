"""The ``[generate]`` table: how the trained model writes, and how what it writes is scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dpft.config.base import Count, Positive, Section, Words
from dpft.config.layer_names import each_once

Metric = Literal["bleu", "nist", "meteor", "rouge-l", "cider", "ter"]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class GenerateSection(Section):
    """Decoding after training. What the trained model writes is post-processing; the prompts must be public."""

    prompts: Words = Field(
        default=(),
        max_length=100,
        description="public texts, each put into data.template, that the report shows continued",
    )
    samples: Annotated[Count, Field(le=100)] = Field(default=2, description="texts sampled for each prompt")
    temperature: Positive = Field(default=1.0, description="the temperature at which those are sampled")
    top_p: float = Field(default=0.9, gt=0, le=1, description="the probability mass that they are sampled from")
    metrics: Annotated[tuple[Metric, ...], BeforeValidator(_to_tuple), AfterValidator(each_once)] = Field(
        default=(), description="what written texts are scored by on held-out records; [] = none are written"
    )
    limit: int = Field(default=0, ge=0, le=10**9, description="held-out sources that are written for; 0 = all")
    beams: Annotated[Count, Field(le=64)] = Field(default=1, description="beams of the search; 1 = greedy")
    length_penalty: float = Field(
        default=1.0, ge=0, le=10, description="the exponent of the length that scores are divided by"
    )
    no_repeat_ngram: int = Field(
        default=0, ge=0, le=64, description="the size of n-grams that may not come twice; 0 = any may"
    )
    max_new_tokens: Annotated[Count, Field(le=65_536)] = Field(default=64, description="tokens written at most")
    stop: Annotated[tuple[TokenId, ...], BeforeValidator(_to_tuple), Field(max_length=100)] = Field(
        default=(), description="ids of tokens that end a text beside the model's own"
    )

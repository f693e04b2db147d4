"""The ``[method]`` tables of prompts and prefixes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dpft.config.base import Positive, Section, wrong

_Count = Annotated[int, Field(ge=1, le=65_536)]


class PromptSection(Section):
    """Prompt tuning: Lester et al. 2021."""

    name: Literal["prompt"] = Field(description="the method")
    length: _Count = Field(default=20, description="how many vectors stand among the tokens of every input")
    init: Literal["auto", "vocabulary", "normal"] = Field(default="auto", description="how the vectors start")
    init_std: Positive = Field(default=0.02, description='the standard deviation of init = "normal"')


class PrefixSection(Section):
    """Prefix tuning: Li and Liang 2021."""

    name: Literal["prefix"] = Field(description="the method")
    length: _Count = Field(default=20, description="how many keys and values stand in front of every attention's own")
    init_std: Positive = Field(default=0.02, description="the standard deviation that they start with")


class AttemptSection(Section):
    """ATTEMPT: Asai et al. 2022."""

    name: Literal["attempt"] = Field(description="the method")
    sources: str = Field(
        default="",
        max_length=1024,
        description='the file of source prompts, made by dpft source-prompt; "" = rows of the vocabulary',
    )
    sha256: str = Field(
        default="", pattern=r"^([0-9a-f]{64})?\z", description='that file\'s SHA-256; "" = whatever it is'
    )
    count: _Count = Field(default=6, description="the number of source prompts")
    length: _Count = Field(default=100, description="how many vectors a prompt has")
    width: _Count = Field(default=100, description="the width inside the small network that attends to the prompts")
    temperature: Positive | None = Field(
        default=None, description="what its scores are divided by; absent = e times the width of an embedding"
    )
    train_norm: bool = Field(default=False, description="whether the LayerNorm of that network trains too")
    tasks: _Count = Field(default=1, description="the number of tasks, each with a prompt of its own")

    @model_validator(mode="after")
    def _a_recipe_is_one_task(self) -> Self:
        if self.tasks > 1:
            raise wrong("tasks", "expected 1, since a recipe has one task's records; several are for the library")
        return self

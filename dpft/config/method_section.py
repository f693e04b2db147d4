"""The ``[method]`` table: one section a method, told apart by ``name``.

Fields and defaults are those of the method's dataclass in ``dpft.peft``, which reads what is written here; a test
compares the two. Kept apart from it because recipes are checked without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dpft.config.base import Positive, Section, wrong
from dpft.config.bottleneck_section import Activation, BottleneckSection, Width
from dpft.config.layer_names import Layers, Parts, Paths, each_once
from dpft.config.presets import PRESETS
from dpft.config.sections_dsee import DSEESection
from dpft.config.sections_ladder import LadderSection
from dpft.config.sections_prompts import AttemptSection, PrefixSection, PromptSection
from dpft.config.sections_raft import RAFTSection
from dpft.config.sections_sparse import SparseAdapterSection


def _to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Pattern = Literal["lock", "ignore"]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[
    tuple[TokenId, ...], BeforeValidator(_to_tuple), Field(max_length=65_536), AfterValidator(each_once)
]


class LoRASection(Section):
    """Low-rank adaptation: Hu et al. 2021."""

    name: Literal["lora"] = Field(description="the method")
    rank: int = Field(default=8, ge=1, le=65_536, description="the rank of each added pair of factors")
    alpha: Positive | None = Field(
        default=None, description="numerator of the scaling alpha/rank; absent = a scaling of 1"
    )
    targets: Parts = Field(default=(), description="last components of module names; [] = the family's usual ones")
    blocks: Width | None = Field(default=None, description="how many of the last blocks it is in; absent = all")
    fuse_qkv: bool = Field(default=False, description="whether query, key and value of one attention share A")
    freeze_a: bool = Field(default=False, description="whether B alone trains (FFA-LoRA)")
    rslora: bool = Field(default=False, description="whether the scaling is alpha/sqrt(rank)")
    init: Literal["kaiming", "xavier"] = Field(default="kaiming", description="how A starts")
    pattern: Pattern = Field(default="ignore", description="whether the factors keep off the zeros of sparse layers")

    @model_validator(mode="after")
    def _rslora_scales_by_alpha(self) -> Self:
        if self.rslora and self.alpha is None:
            raise wrong("rslora", "scales by alpha/sqrt(rank); set method.alpha, or leave rslora out")
        return self


class BitFitSection(Section):
    """Biases alone: Ben Zaken et al. 2021."""

    name: Literal["bitfit"] = Field(description="the method")


class NormsSection(Section):
    """Normalisation layers alone."""

    name: Literal["norms"] = Field(description="the method")


class IA3Section(Section):
    """Scaling vectors: Liu et al. 2022."""

    name: Literal["ia3"] = Field(description="the method")
    targets: Paths = Field(
        default=(),
        description="ends of names of layers whose outputs are scaled; [] = the family's usual ones",
    )
    feedforward: Paths = Field(
        default=(), description="ends of names of layers whose inputs are scaled; [] = the family's usual ones"
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if bool(self.targets) != bool(self.feedforward):
            given, other = ("targets", "feedforward") if self.targets else ("feedforward", "targets")
            raise wrong(given, f"needs method.{other} beside it; set both, or leave out both")
        return self


class HeadSection(Section):
    """The classification head alone."""

    name: Literal["head"] = Field(description="the method")


class LastLayersSection(Section):
    """The last transformer blocks in full."""

    name: Literal["last-k"] = Field(description="the method")
    k: Width = Field(default=1, description="how many of the last transformer blocks train")
    pattern: Pattern = Field(default="lock", description="whether the zeros of sparse layers stay zero")


class FullSection(Section):
    """The pretrained weights themselves."""

    name: Literal["full"] = Field(description="the method")
    targets: Layers = Field(default=(), description="last components of names of Linear layers; [] = the whole model")
    biases: bool = Field(default=True, description="whether biases train too")
    pattern: Pattern = Field(default="lock", description="whether the zeros of sparse layers stay zero")


class TokensSection(Section):
    """Rows of the input embedding."""

    name: Literal["tokens"] = Field(description="the method")
    tokens: TokenIds = Field(default=(), description="the ids of the tokens whose rows train")

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.tokens:
            raise wrong("tokens", "expected at least one token id, such as tokens = [30522]")
        return self


class AdapterSection(BottleneckSection):
    """Bottleneck adapters: Houlsby et al. 2019."""

    name: Literal["adapter"] = Field(description="the method")
    init: Literal["zero", "normal", "xavier"] = Field(default="zero", description="how the added layers start")
    init_std: Positive = Field(default=1e-3, description='the standard deviation of init = "normal"')


class CompacterSection(BottleneckSection):
    """Compacter: Karimi Mahabadi et al. 2021."""

    name: Literal["compacter"] = Field(description="the method")
    activation: Activation = Field(default="gelu_new", description="the function between the added layers")
    n: Width = Field(default=4, description="the number of Kronecker terms; divides the widths outside and inside")
    shared_rule: bool = Field(default=True, description="whether all layers share the rule of n small matrices")
    init: Literal["private", "published", "yu"] = Field(default="private", description="how the factors start")


MethodSection = Annotated[
    LoRASection
    | BitFitSection
    | NormsSection
    | IA3Section
    | HeadSection
    | LastLayersSection
    | FullSection
    | TokensSection
    | AdapterSection
    | CompacterSection
    | PromptSection
    | PrefixSection
    | AttemptSection
    | DSEESection
    | LadderSection
    | RAFTSection
    | SparseAdapterSection,
    Field(discriminator="name"),
]
"""The sections that ``[method]`` may be."""

BesideSection = Annotated[
    LoRASection
    | BitFitSection
    | NormsSection
    | IA3Section
    | AdapterSection
    | CompacterSection
    | RAFTSection
    | SparseAdapterSection,
    Field(discriminator="name"),
]
"""The sections that ``[beside]`` may be: methods that leave room for another."""


def with_preset(section: Any) -> Any:
    """A ``[method]`` table whose name is a preset's, with the preset's fields under its own; any other as it is."""
    if not isinstance(section, Mapping):
        return section
    name = section.get("name")
    if not isinstance(name, str) or name not in PRESETS:
        return section
    own = {key: value for key, value in section.items() if key != "name"}
    # Two ways to give one size: a recipe's own takes the place of either.
    sizes = {"bottleneck", "reduction"} if {"bottleneck", "reduction"} & own.keys() else set()
    return {**{key: value for key, value in PRESETS[name].items() if key not in sizes}, **own}

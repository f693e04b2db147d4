"""Prompt tuning: P trained vectors among the input embeddings (Lester et al. 2021, arXiv 2104.08691).

    tokens ─► embedding ─► e_1 .. e_T ─► [p_1 .. p_P, e_1 .. e_T] ─► model (frozen)         p: [P, d]

Every example gets a copy of the prompt before it meets the tokens, so that its gradient dl/dp [B,P,d] is its own. The
prompt costs P positions of every input. For images the vectors join behind [CLS] what the embeddings give out
(VPT, Jia et al. 2022, arXiv 2203.12119). Where the vectors stand among the tokens: see ``soft_prompt.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.families import FAMILIES, model_type
from dpft.peft.method import Method, expect_one_of, expect_whole, placed
from dpft.peft.soft_prompt import SoftPrompt, host_of, inserted, put_in, without
from dpft.per_sample import expand

_COMMON = 5000  # vocabularies list what is frequent first


@dataclass(frozen=True)
class PromptTuning(Method):
    """``length`` is P. ``init``: "vocabulary" starts at embeddings of tokens drawn among the first 5,000, as published;
    "normal" at numbers of standard deviation ``init_std``; "auto" the former for text, the latter for images."""

    name: ClassVar[str] = "prompt"
    what: ClassVar[str] = "vectors among the input embeddings (Lester et al. 2021)"
    merges: ClassVar[bool] = False

    length: int = 20
    init: Literal["auto", "vocabulary", "normal"] = "auto"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        expect_whole("length", self.length)
        expect_one_of("init", self.init, ("auto", "vocabulary", "normal"))
        expect_above_zero("init_std", self.init_std)

    @property
    def identity(self) -> bool:
        return False

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """The part lies in the module that embeds the inputs."""
        host = host_of(model)
        text = FAMILIES[model_type(host)].tokens
        if not text and self.init == "vocabulary":
            raise InputError('Expected method.init to be "normal" or left out: this model has no vocabulary.')
        if text:
            table = table_of(host)
            drawn = self.init != "normal"
            initial = rows(table, self.length, generator) if drawn else self._normal(table.shape[1], generator)
            part = Prompt(host, placed(initial, host))
        else:
            part = ImagePrompt(host, placed(self._normal(host.config.hidden_size, generator), host))  # type: ignore[union-attr]
        put_in(part, model)
        return [part.prompt]

    def _normal(self, width: int | Any, generator: torch.Generator) -> Tensor:
        return torch.empty(self.length, width).normal_(0, self.init_std, generator=generator)


class Prompt(SoftPrompt):
    """The same P vectors for every example."""

    def __init__(self, host: nn.Module, prompt: nn.Parameter) -> None:
        super().__init__(host, len(prompt))
        self.prompt = prompt  # [P, d]

    def vectors(self, embeds: Tensor, mask: Tensor, arguments: dict[str, Any]) -> Tensor:
        return expand(self.prompt, embeds.shape[0])


class ImagePrompt(Prompt):
    """The same behind [CLS] in what the model's ``embeddings`` give out. There is no padding."""

    def put(self, model: nn.Module, name: str) -> None:
        super().put(model, name)
        embeddings = model.get_submodule("embeddings")
        self._handles.append(embeddings.register_forward_hook(self._join))

    def before(self, model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments.get("attention_mask") is not None:
            raise InputError("Expected images without attention_mask: a prompt among patches is never masked.")
        return arguments

    def after(self, model: nn.Module, arguments: Mapping[str, Any], output: Any) -> Any:
        hidden: Tensor = output[0]
        return without(output, self._behind_first(hidden), self.length, hidden.shape[1])

    def _join(self, embeddings: nn.Module, args: Any, patches: Tensor) -> Tensor:
        if not self.enabled:
            return patches
        return inserted(patches, self.vectors(patches, patches, {}).to(patches.dtype), self._behind_first(patches))

    def _behind_first(self, like: Tensor) -> Tensor:
        return torch.full((like.shape[0],), self.behind, device=like.device)


def expect_above_zero(field: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"Expected method.{field}={value} to be a finite number above 0.")


def table_of(host: nn.Module) -> Tensor:
    """The weights of the input embedding, [vocabulary, d]."""
    table: Tensor = host.get_input_embeddings().weight.detach()  # type: ignore[operator]
    return table


def rows(table: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Embeddings [count, d] of tokens drawn among the first 5,000, each at most once if there are enough."""
    first = min(_COMMON, len(table))
    order = torch.cat([torch.randperm(first, generator=generator) for _ in range(math.ceil(count / first))])
    return table[order[:count].to(table.device)].clone()

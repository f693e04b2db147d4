"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685).

    x ──► W0 (frozen) ───────────►(+)──► y        y = W0 x + (alpha / rank) B A x
      └─► A [r,I] ─► B [O,r] ─► *alpha/r ─┘

A starts Kaiming-uniform, B at zero, so the model starts unchanged. Trained: A and B of every target.
Per-example gradients come from the rules of Linear; a rank-r factor is small, so they are kept dense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.inject import matching_modules, replace_module


@dataclass(frozen=True)
class LoRA:
    """What to adapt. ``targets`` are last components of module names (``("query", "value")``); ``alpha``
    defaults to ``rank`` (scaling 1). ``targets=()`` takes the model family's usual ones."""

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"Expected method.rank={self.rank} to be a whole number of at least 1.")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise InputError(f"Expected method.alpha={self.alpha} to be a finite number above 0.")

    @property
    def scaling(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def inject(self, model: nn.Module, targets: tuple[str, ...], seed: int) -> list[nn.Module]:
        """Wrap every target of ``model``; returns the modules added, which are what trains.

        Nothing is changed where a target does not fit."""
        generator = torch.Generator().manual_seed(seed)
        added: list[nn.Module] = []
        for name, module in matching_modules(model, targets, _linear_shape):
            layer = LoRALinear(module, self, generator)
            replace_module(model, name, layer)
            added += [layer.lora_A, layer.lora_B]
        return added

    def peft_config(self, model: nn.Module) -> dict[str, Any]:
        """The ``adapter_config.json`` with which HF peft loads the same weights."""
        layers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha if self.alpha is not None else self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": any(not isinstance(m.base_layer, nn.Linear) for m in layers.values()),
            "target_modules": sorted(layers),
        }


class LoRALinear(nn.Module):
    """A frozen Linear (or GPT-2 Conv1D) with a trainable low-rank branch. [B, ..., I] -> [B, ..., O]."""

    def __init__(self, base: nn.Module, config: LoRA, generator: torch.Generator) -> None:
        super().__init__()
        inputs, outputs = _shape(base)
        weight = next(base.parameters())
        self.base_layer = base
        self.scaling = config.scaling
        self.lora_A = nn.Linear(inputs, config.rank, bias=False, device=weight.device, dtype=weight.dtype)
        self.lora_B = nn.Linear(config.rank, outputs, bias=False, device=weight.device, dtype=weight.dtype)
        bound = 1 / math.sqrt(inputs)  # Kaiming-uniform with a = sqrt(5), as in the paper's code
        with torch.no_grad():
            self.lora_A.weight.copy_(torch.empty(config.rank, inputs).uniform_(-bound, bound, generator=generator))
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        branch: Tensor = self.lora_B(self.lora_A(x))
        return y + (branch if self.scaling == 1 else branch * self.scaling)


def _linear_shape(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = next(module.parameters()).shape  # Conv1D keeps its weight as [I, O]
    return inputs, outputs


def from_recipe(section: Mapping[str, Any]) -> LoRA:
    """The method that a recipe's ``[method]`` table describes."""
    return LoRA(rank=section["rank"], alpha=section.get("alpha"), targets=tuple(section["targets"]))

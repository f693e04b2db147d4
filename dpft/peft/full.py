"""Full fine-tuning: pretrained weights themselves train, all of them or chosen Linear layers.

    G_b = sum_t g_t a_t^T for example b, kept as its factors where they are smaller (Bu et al. 2022, arXiv 2210.00038)

Nothing is added, but in layers with a pattern of zeros, which is locked: there the entries that are not zero train
(pattern.py). A parameter that the forward pass never uses would train on noise alone; the preflight
refuses it by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from dpft.errors import InputError
from dpft.peft.inject import linears
from dpft.peft.method import Method
from dpft.peft.pattern import Pattern, check_pattern, locked


@dataclass(frozen=True)
class Full(Method):
    """``targets``: last components of the names of Linear layers, ``("all-linear",)`` for every Linear of the
    blocks, or ``()`` for the whole model. ``biases``: whether the biases among them train too. ``pattern``: whether
    zeros of a sparse backbone stay zero."""

    name: ClassVar[str] = "full"
    what: ClassVar[str] = "the pretrained weights themselves, all or of chosen Linear layers"
    merges: ClassVar[bool] = True

    targets: tuple[str, ...] = ()
    biases: bool = True
    pattern: Pattern = "lock"

    def __post_init__(self) -> None:
        check_pattern(self.pattern)

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """Add nothing to dense layers; every chosen parameter once, also where a model ties it to another."""
        part = next((target for target in self.targets if ":" in target), None)
        if part is not None:
            raise InputError(f"method.targets names {part!r}, but full trains whole layers; leave out the part.")
        chosen = {id(p): p for name, p in self._named(model) if self.biases or name.rpartition(".")[2] != "bias"}
        return locked(model, list(chosen.values()), self.pattern)

    def _named(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        if not self.targets:
            yield from model.named_parameters()
        else:
            for _, module in linears(model, self.targets):
                yield from module.named_parameters()

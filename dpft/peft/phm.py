"""Compacter's layer, a Linear of Kronecker products (Zhang et al. 2021, arXiv 2102.08597), and how its factors start.

What it computes and its per-example gradients are in ``kronecker.py``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from dpft.peft.kronecker import kronecker_linear

Init = Literal["private", "published", "yu"]


class PHM(nn.Module):
    """``y = x W + b`` with W = sum_i A_i ⊗ (s_i t_i^T), A being the rule.

    [B, ..., I] -> [B, ..., O]. ``rule`` may be another layer's too."""

    def __init__(self, rule: nn.Parameter, s: nn.Parameter, t: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.n, self.inputs = s.shape[0], s.numel()
        self.rule, self.s, self.t, self.bias = rule, s, t, bias

    def forward(self, x: Tensor) -> Tensor:
        return kronecker_linear(x, self.rule, self.s, self.t, self.bias)

    def extra_repr(self) -> str:
        return f"n={self.n}, inputs={self.inputs}, outputs={self.t.numel()}"


def initial_rule(init: Init, n: int, generator: torch.Generator) -> Tensor:
    """A [n, n, n]. At the published 1e-4 the factors' gradients are some 1e-7 of the whole, and noise drowns them."""
    std = {"private": 0.5, "published": 1e-4, "yu": math.sqrt(2) / n}[init]
    return torch.empty(n, n, n).normal_(0, std, generator=generator)


def initial_factors(
    init: Init, n: int, inputs: int, outputs: int, generator: torch.Generator, *, up: bool
) -> tuple[Tensor, Tensor]:
    """s [n, I/n] and t [n, O/n].

    Glorot-uniform with gain sqrt(2), each s_i and t_i a matrix by itself; "private" starts the up-projection's t at
    zero. "yu": Xavier-normal with gain sqrt(2) of arrays [n, I/n, 1] and [n, 1, O/n], fans as torch counts them."""
    rows, columns = inputs // n, outputs // n
    s, t = torch.empty(n, rows), torch.zeros(n, columns)
    if init == "yu":
        s.normal_(0, math.sqrt(4 / (rows + n)), generator=generator)
        t.normal_(0, math.sqrt(4 / (columns + n * columns)), generator=generator)
        return s, t
    for factor, length in ((s, rows), (t, columns)):
        if factor is s or not (up and init == "private"):
            bound = math.sqrt(12 / (length + 1))
            factor.uniform_(-bound, bound, generator=generator)
    return s, t

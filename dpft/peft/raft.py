"""RAFT: rational activation functions whose coefficients train (Fang et al. 2022, arXiv 2208.14111).

    x ──► R(x) = P(x / c) / Q(x / c) ──►        in place of each feed-forward's GELU, ReLU, SiLU, and a pooler's tanh

Each place has m + n + 1 = 10 coefficients of its own. They start at a fit of the function they replace on [-c, c]
(rational.py): data-free, within 0.0031 of GELU for c = 6. A pretrained model has larger inputs too, and there a
rational function goes its own way: for GELU off by 1.4 at 20 and by 4.8 at 30. So beyond c the old function continues
from R's value at the end, R(+-c) + act(x) - act(+-c), whatever was learnt; ``tails = "rational"`` is the published
behaviour.

The gradient by a raw coefficient is a sum of x^j, five powers from the smallest to the largest, and clipping then
spends all of an example's norm on the largest. Here what trains is theta_j = s_j a_j, with s_j the root mean square
over x from N(0, 1) of what a_j is multiplied by, so that all have gradients of one size under one noise, times the
square root of the numbers a token that share the function: its gradient is a sum over all of them, which would leave
the head nothing of the clip, and a step that suits a bias would move all of them at once. ``scaling = "none"`` trains
the coefficients of powers of x, as published. Each example's gradient is summed over its own tokens in the backward
pass of the function itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.families import Role, at, backbone
from dpft.peft.inject import replace_module
from dpft.peft.lora import linear_shape
from dpft.peft.method import Method, Wrapper, expect_one_of, expect_whole, innermost, placed
from dpft.peft.rational import Fit, Version, fit, rational
from dpft.per_sample import expand

Tails = Literal["base", "rational"]
Scaling = Literal["private", "none"]


@dataclass(frozen=True)
class RAFT(Method):
    """``numerator`` and ``denominator`` are the degrees m and n; ``range`` is c; ``version``, ``tails`` and ``scaling``
    as above and in rational.py."""

    name: ClassVar[str] = "raft"
    what: ClassVar[str] = "rational activation functions (Fang et al. 2022)"
    merges: ClassVar[bool] = False
    roles: ClassVar[tuple[Role, ...]] = ("activation",)

    numerator: int = 5
    denominator: int = 4
    range: float = 6.0
    version: Version = "safe"
    tails: Tails = "base"
    scaling: Scaling = "private"

    def __post_init__(self) -> None:
        expect_whole("numerator", self.numerator)
        expect_whole("denominator", self.denominator)
        if max(self.numerator, self.denominator) > 12:
            raise InputError("Expected method.numerator and method.denominator to be at most 12.")
        if not 0.1 <= self.range <= 1000:
            raise InputError(f"Expected method.range={self.range} to be from 0.1 to 1000.")
        expect_one_of("version", self.version, ("safe", "smooth"))
        expect_one_of("tails", self.tails, ("base", "rational"))
        expect_one_of("scaling", self.scaling, ("private", "none"))

    @property
    def identity(self) -> bool:
        """Only up to the error of the fit."""
        return False

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """Replace every activation function; the coefficients train."""
        read_by = at(model, "ffn_proj")
        found = [
            (*place, linear_shape(innermost(layer))[0])
            for place, (_, layer) in zip(at(model, "activation"), read_by, strict=True)
        ]
        pooler: Any = getattr(backbone(model), "pooler", None)
        if isinstance(getattr(pooler, "activation", None), nn.Module):
            name = next(name for name, module in model.named_modules() if module is pooler)
            found.append((f"{name}.activation", pooler.activation, linear_shape(innermost(pooler.dense))[0]))
        made = [(name, Rational(module, self, model, width)) for name, module, width in found]
        for name, layer in made:
            replace_module(model, name, layer)
        return [p for _, layer in made for p in (layer.numerator, layer.denominator)]


class Rational(Wrapper):
    """A rational function in place of an activation function. [B, ...] -> [B, ...]. ``fit`` is where it started;
    ``width`` says how many numbers a token it is used on.

    Trained: ``numerator`` [m+1] and ``denominator`` [n], the coefficients times ``scales``."""

    def __init__(self, base: nn.Module, config: RAFT, like: nn.Module, width: int) -> None:
        super().__init__(base)
        self.c, self.version, self.tails = config.range, config.version, config.tails
        self.fit = fit(base, config.range, config.numerator, config.denominator, config.version)
        self.scales = _scales(self.fit, config, width)
        parts = zip((self.fit.a, self.fit.b), self.scales, strict=True)
        self.numerator, self.denominator = (
            placed(torch.tensor(values, dtype=torch.float64) * torch.tensor(s, dtype=torch.float64), like)
            for values, s in parts
        )

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """a [m+1] and b [n] as they are now, of powers of x / c."""
        return self._unscaled(self.numerator.detach(), 0), self._unscaled(self.denominator.detach(), 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = x.clamp(-self.c, self.c) if self.tails == "base" else x
        B = x.shape[0]
        a, b = self._unscaled(expand(self.numerator, B), 0), self._unscaled(expand(self.denominator, B), 1)
        y = rational(inner / self.c, a, b, self.version)
        return y + (self.base_layer(x) - self.base_layer(inner)) if self.tails == "base" else y

    def _unscaled(self, theta: Tensor, part: int) -> Tensor:
        return theta / torch.tensor(self.scales[part], dtype=theta.dtype, device=theta.device)


def _scales(start: Fit, config: RAFT, width: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """s_j: what theta_j is to the coefficient of t^j."""
    m, n, c = config.numerator, config.denominator, config.range
    if config.scaling == "none":  # theta_j is the coefficient of x^j
        return tuple(c**-j for j in range(m + 1)), tuple(c**-k for k in range(1, n + 1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / math.sqrt(2 * math.pi)
    t = np.clip(nodes / c, -1, 1)
    Q = 1 + sum(abs(b * t**k) for k, b in enumerate(start.b, start=1))
    R = sum(a * t**j for j, a in enumerate(start.a)) / Q
    by_a = [t**j / Q for j in range(m + 1)]
    by_b = [R / Q * t**k for k in range(1, n + 1)]
    rms = [[math.sqrt(width * float(weights @ np.square(f))) for f in each] for each in (by_a, by_b)]
    return tuple(rms[0]), tuple(rms[1])

"""Compacter: adapters of Kronecker products of small factors (Karimi Mahabadi et al. 2021, arXiv 2106.04647).

    y = h + PHM_up(phi(PHM_down(h)))        PHM: see phm.py

One rule A [n,n,n] serves every PHM layer of the model (``shared_rule``); with an own rule a layer it is the variant of
Yu et al. 2022, arXiv 2110.06500. The gradients of a shared rule's uses are added up before a norm is taken: the norm
of the sum can be the square root of the number of uses larger than that of the parts put together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from dpft.errors import InputError
from dpft.peft.bottleneck import Activation, Bottleneck, Place
from dpft.peft.method import expect_one_of, expect_whole, placed
from dpft.peft.phm import PHM, Init, initial_factors, initial_rule

_REDUCTION = 32


@dataclass(frozen=True)
class Compacter(Bottleneck):
    """``n`` divides the widths outside and inside, the latter by default 1/32 of the former. ``placement = "ffn"`` is
    Compacter++. ``init``: "private" starts as the identity with gradients that noise does not drown; "published" with
    a rule of standard deviation 1e-4; "yu" Xavier-normal throughout, which is not the identity."""

    name: ClassVar[str] = "compacter"
    what: ClassVar[str] = "bottleneck layers of Kronecker factors (Karimi Mahabadi et al. 2021)"

    activation: Activation = "gelu_new"
    n: int = 4
    shared_rule: bool = True
    init: Init = "private"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_whole("n", self.n)
        expect_one_of("init", self.init, ("private", "published", "yu"))

    @property
    def identity(self) -> bool:
        return self.init == "private"

    def _default_size(self, width: int) -> int:
        """The multiple of n next below 1/32 of the width, n at least."""
        return max(self.n, width // _REDUCTION // self.n * self.n)

    def _layers(self, places: list[Place], generator: torch.Generator) -> list[tuple[nn.Module, nn.Module]]:
        sizes = [self._divisible(place) for place in places]
        shared = self._rule(places[0], generator) if self.shared_rule else None
        return [
            (
                self._phm(place, place.width, size, shared, generator),
                self._phm(place, size, place.width, shared, generator, up=True),
            )
            for place, size in zip(places, sizes, strict=True)
        ]

    def _divisible(self, place: Place) -> int:
        size = self._size(place)
        if place.width % self.n or size % self.n:
            raise InputError(
                f"Expected method.n={self.n} to divide {place.width}, the width of {place.name}, and {size}, the "
                f"width inside; choose a divisor of {math.gcd(place.width, size)}, or another method.bottleneck."
            )
        return size

    def _rule(self, place: Place, generator: torch.Generator) -> nn.Parameter:
        return placed(initial_rule(self.init, self.n, generator), place.like)

    def _phm(
        self,
        place: Place,
        inputs: int,
        outputs: int,
        shared: nn.Parameter | None,
        generator: torch.Generator,
        *,
        up: bool = False,
    ) -> PHM:
        rule = shared if shared is not None else self._rule(place, generator)
        s, t = initial_factors(self.init, self.n, inputs, outputs, generator, up=up)
        bias = placed(torch.zeros(outputs), place.like) if self.bias else None
        return PHM(rule, placed(s, place.like), placed(t, place.like), bias)

"""Gaussian noise on a fixed grid, and the room that rounding takes from the clip.

Floating-point noise added to a floating-point sum leaves traces of the sum in its low bits (Mironov 2012).
Here the sum is first rounded to a grid that depends on public numbers only; noise is rounded to the same
grid; their sum is exact in float64. So the release is a function of "gridded sum + ideal Gaussian".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dpft.engine.keystream import Words, standard_normal
from dpft.errors import InputError, PrivacyError

T = TypeVar("T")

# Share of the clip set aside for rounding: one record more or less changes how the others are cut into
# micro-batches, and so the last bits of their gradients. Measured with 200 records: 6e-6 of the clip in float32,
# 2e-4 in bfloat16, across the neighbours' difference (docs/log.md).
_SUM_ROUNDING = {torch.float32: 2.0**-13, torch.bfloat16: 2.0**-9}

_PIECE = 1 << 20  # numbers rounded at a time, so that no third vector of all coordinates is in memory


@dataclass(frozen=True)
class GriddedGaussian:
    """The mechanism's last step, made from the plan's own ``clip`` and ``noise_multiplier``.

    ``coordinates`` is the number of trained coordinates; noise goes to every one of them at every step.
    ``compute`` is the type of the model's matrix products, which decides how much room rounding gets."""

    clip: float
    noise_multiplier: float
    coordinates: int
    compute: torch.dtype = torch.float32

    @property
    def grid(self) -> float:
        """A power of two, about 2^-30 of the noise's standard deviation."""
        std = self.noise_multiplier * self.clip
        return 2.0 ** (math.floor(math.log2(std if std > 0 else self.clip)) - 30)

    @property
    def bound(self) -> float:
        """What each example is clipped to: the clip less what rounding may add to a neighbour's difference.

        Rounding two neighbouring sums to the grid moves their difference by at most grid * sqrt(d)."""
        bound = self.clip * (1 - _SUM_ROUNDING[self.compute]) - self.grid * math.sqrt(self.coordinates)
        if bound < self.clip / 2:
            raise InputError(
                f"Expected privacy.noise_multiplier={self.noise_multiplier:g} to be small beside "
                f"1e9/sqrt({self.coordinates} trained coordinates). Train fewer parameters or plan less noise."
            )
        return bound

    def noise(self, source: Words) -> Noise:
        """Drawn for one sum. It depends on no record, so that it may be drawn before the sum is there."""
        std = self.noise_multiplier * self.clip / self.grid
        return Noise(standard_normal(source, self.coordinates).mul_(std).round_())

    def release(self, total: Tensor, noise: Noise) -> Tensor:
        """``round(total) + noise``, [d] float64, an exact multiple of the grid.

        ``total`` is the clipped sum [d], float64; ``noise`` is :meth:`noise`, and is used up. Guarantee: noise
        N(0, (noise_multiplier * clip)^2) on each coordinate, whatever the sum is. Raises :class:`PrivacyError` for
        noise that another sum had."""
        made = noise.take()
        for drawn, summed in zip(torch.split(made, _PIECE), torch.split(total, _PIECE), strict=True):
            drawn.add_((summed.cpu() / self.grid).round_()).mul_(self.grid)
        return made


class Noise:
    """For one release: two sums with the same noise differ by what noise was to hide."""

    def __init__(self, units: Tensor) -> None:
        self._units: Tensor | None = units  # [d] float64, whole numbers of the grid

    def take(self) -> Tensor:
        units, self._units = self._units, None
        if units is None:
            raise PrivacyError("Expected noise that no sum was released with; draw it anew for each.")
        return units


@contextmanager
def drawn_beside(draw: Callable[[], T], *, idle: bool) -> Iterator[Callable[[], T]]:
    """What ``draw`` gives, for one call, inside the context; where the processor is ``idle`` meanwhile (a GPU takes the
    sum) it is drawn in a thread of its own from now on. Leaving waits for the thread, which shares its source with what
    comes next."""
    if not idle:
        yield draw
        return
    with ThreadPoolExecutor(1, "noise") as pool:
        yield pool.submit(draw).result

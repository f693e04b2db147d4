"""Gaussian noise on a fixed grid, and the room that rounding takes from the clip.

Floating-point noise added to a floating-point sum leaves traces of the sum in its low bits (Mironov 2012).
Here the sum is first rounded to a grid that depends on public numbers only; noise is rounded to the same
grid; their sum is exact in float64. So the release is a function of "gridded sum + ideal Gaussian".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dpft.engine.keystream import PIECE, Words, normals
from dpft.errors import InputError, PrivacyError

# Share of the clip set aside for rounding: one record more or less changes how the others are cut into
# micro-batches, and so the last bits of their gradients. Measured with 200 records: 6e-6 of the clip in float32,
# 2e-4 in bfloat16, across the neighbours' difference (docs/log.md).
_SUM_ROUNDING = {torch.float32: 2.0**-13, torch.bfloat16: 2.0**-9}


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
        """For one sum: drawn from ``source`` as the sum is released, or before (:func:`drawn_beside`), since it depends
        on no record."""
        std = self.noise_multiplier * self.clip / self.grid
        return Noise(piece.mul_(std).round_() for piece in normals(source, self.coordinates))

    def release(self, total: Tensor, noise: Noise) -> Tensor:
        """``round(total) + noise``, [d] float64, an exact multiple of the grid.

        ``total`` is the clipped sum [d], float64, and is overwritten, piece by piece, so that no second vector of all
        coordinates is in memory; ``noise`` is :meth:`noise`, and is used up. Guarantee: noise
        N(0, (noise_multiplier * clip)^2) on each coordinate, whatever the sum is. Raises :class:`PrivacyError` for
        noise that another sum had."""
        if total.shape != (self.coordinates,):
            raise PrivacyError(f"Expected a sum of {self.coordinates} coordinates, found {tuple(total.shape)}.")
        made, pieces = total.cpu(), noise.take()
        for summed, drawn in zip(torch.split(made, PIECE), pieces, strict=True):
            summed.div_(self.grid).round_().add_(drawn).mul_(self.grid)
        return made


class Noise:
    """For one release: two sums with the same noise differ by what noise was to hide."""

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        self._pieces: Iterable[Tensor] | None = pieces  # float64, whole numbers of the grid

    def draw(self) -> None:
        """All of it, now."""
        self._pieces = list(self.take())

    def take(self) -> Iterable[Tensor]:
        """Its pieces, once."""
        pieces, self._pieces = self._pieces, None
        if pieces is None:
            raise PrivacyError("Expected noise that no sum was released with; draw it anew for each.")
        return pieces


@contextmanager
def drawn_beside(noise: Noise, *, idle: bool) -> Iterator[None]:
    """Where the processor is ``idle`` inside the context (a GPU takes the sum), draw ``noise`` in a thread meanwhile.

    Leaving waits for the thread, since what comes next draws from the same source; an error in it arrives there."""
    if not idle:
        yield
        return
    with ThreadPoolExecutor(1, "noise") as pool:
        drawing = pool.submit(noise.draw)
        yield
    drawing.result()

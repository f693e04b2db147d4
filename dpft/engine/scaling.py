"""Scale, then privatise: gradients brought to about one size a coordinate before they are clipped and noised.

The norm of a gradient is spent on its large coordinates, and the same noise goes to all. Here every example's gradient
is multiplied by a scale [d] before its norm is taken, noise goes to the scaled sum, and the noised mean is divided by
the scale again before the optimizer sees it. The scale is 1 over the size that each coordinate's mean gradient had in
*earlier noised* steps: a function of what was released, so that each step is the plan's own mechanism, whose query was
chosen by its predecessors' answers. Guarantee, sensitivity and ledger are those without it.

References: Li et al. 2023 (DP2, delayed preconditioners); Ganesh et al. 2025, "On Design Principles for Private
Adaptive Optimizers" (scale-then-privatise, with the noise's own variance taken out of the second moment).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpft.engine.plan import Plan
from dpft.errors import InputError

MEMORY = 0.99
"""Decay of the running second moment, per step: under noise, what is not remembered long is not known."""
RANGE = 4.0
"""The scale lies between 1/RANGE and RANGE, which bounds what rounding in one coordinate is multiplied by."""


class PrivatisedScale:
    """The scale [d] float64, learnt from noised means alone and renewed after every ``every`` steps.

    It is 1 at the start, and its mean square is 1, up to RANGE, so that the clip keeps its meaning. ``tensors`` is its
    whole state: keep it with each checkpoint, and copy it back in place. Memory: every gradient becomes dense, which
    suits the small tensors of a method."""

    def __init__(self, coordinates: int, plan: Plan, every: int) -> None:
        if every < 1 or plan.noise_of_mean <= 0:
            raise InputError("Expected a plan with noise, and a scale that is renewed after 1 step or more.")
        self._noise, self._every = plan.noise_of_mean, every
        self.scale = torch.ones(coordinates, dtype=torch.float64)
        self._moment = torch.zeros(coordinates, dtype=torch.float64)
        self._seen = torch.zeros((), dtype=torch.int64)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; all of it was computed from noised gradients."""
        return {"scale.now": self.scale, "scale.moment": self._moment, "scale.seen": self._seen}

    def undo(self, noised: Tensor) -> Tensor:
        """The noised mean of scaled gradients [d] as one of gradients; learns from it.

        Its noise has deviation ``plan.noise_of_mean / scale``, whose square is taken out of the second moment."""
        mean, noise = noised / self.scale, self._noise / self.scale
        self._moment.lerp_(mean.square() - noise.square(), 1 - MEMORY)
        self._seen += 1
        if int(self._seen) % self._every == 0:
            self.scale.copy_(self._renewed())
        return mean

    def _renewed(self) -> Tensor:
        size = (self._moment / (1 - MEMORY ** int(self._seen))).clamp_min(0.0).sqrt()
        scale = 1 / (size + self._noise)  # below the noise, sizes can't be told apart
        return (scale / scale.square().mean().sqrt()).clamp(1 / RANGE, RANGE)

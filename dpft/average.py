"""An average of the steps' values instead of the last: what is evaluated and released, free of privacy cost.

Noise moves the parameters about; an average over steps moves less. Every value was noised when it was made, so the
average is post-processing. Training itself goes on from the raw values, and so does a resumed run.

References: De et al. 2022, "Unlocking High-Accuracy DP Image Classification" (ema); Shejwalkar et al. 2022, "Recycling
Scraps" (tail averages and others).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpft.config import OptimizerSection
from dpft.per_sample.precision import wide


class Average:
    """The running average of ``params`` that the recipe asks for; "none" keeps nothing and changes nothing.

    "tail" is the plain mean of the values after each of the last ``average_tail`` of ``steps``; "ema" weighs the value
    of i steps ago by ``average_decay ** i``, the weights adding up to 1 over the steps seen, so the start is not in it.
    ``tensors`` is the whole state: keep it with each checkpoint, and copy it back in place."""

    def __init__(self, section: OptimizerSection, params: Mapping[str, nn.Parameter], steps: int) -> None:
        self._params = params if section.average != "none" else {}
        self._decay = decay_of(section) if section.average == "ema" else None
        self._first = math.floor(steps * (1 - tail_of(section))) if section.average == "tail" else 0
        self._mean = {name: torch.zeros_like(wide(p.detach())) for name, p in self._params.items()}
        self._seen = torch.zeros((), dtype=torch.int64)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        kept = {f"average.{name}": mean for name, mean in self._mean.items()}
        return {**kept, "average_seen": self._seen} if kept else {}

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Take in the values after step ``done``, counted from 1. A step that was lost is simply not in it."""
        if not self._params or done <= self._first:
            return
        self._seen += 1
        n, decay = int(self._seen), self._decay
        weight = 1 / n if decay is None else (1 - decay) / (1 - decay**n)
        for name, p in self._params.items():
            self._mean[name].lerp_(wide(p), weight)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average in place of the values, after the last step; without one step seen they stay."""
        if int(self._seen):
            for name, p in self._params.items():
                p.copy_(self._mean[name])


def decay_of(section: OptimizerSection) -> float:
    """Of "ema", per step."""
    return 0.9 if section.average_decay is None else section.average_decay


def tail_of(section: OptimizerSection) -> float:
    """The fraction of steps that "tail" averages over."""
    return 0.25 if section.average_tail is None else section.average_tail


def post_processing(section: OptimizerSection) -> list[str]:
    """In words, for the statement: what is computed from noised steps alone, beyond the optimizer's updates."""
    words = []
    if section.scale != "none":
        words.append(
            "the scale that gradients were multiplied by before they were clipped: it was computed from earlier noised "
            "gradients alone, so it costs no privacy"
        )
    kinds = {
        "ema": f"the exponential average, of decay {decay_of(section):g} a step,",
        "tail": f"the average over the last {100 * tail_of(section):g} % of the steps",
    }
    if section.average != "none":
        words.append(
            f"{kinds[section.average]} of the trained parameters, which was evaluated and released instead of the last "
            "step's: every value in it was noised, so averaging costs no privacy"
        )
    return words

"""Adam without the noise's share of its second moment: DP-AdamBC, Tang, Shpilevskiy and Lecuyer, AAAI 2024.

Adam divides by the root of E[g^2]. Of a noised gradient that is signal^2 + noise^2, and under privacy noise^2 is nearly
all of it: every coordinate is divided by the same constant, and Adam becomes SGD with momentum. The noise's variance
is public, so it is subtracted. What is left may be negative by chance; it is held above a floor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class AdamBC(torch.optim.Optimizer):
    """``p -= lr m / (sqrt(max(v - noise_std^2, (noise_floor noise_std)^2)) + eps)``, m and v bias-corrected as in Adam.

    ``noise_std`` is the standard deviation of the noise on each coordinate of the gradient it is given
    (``Plan.noise_of_mean``); 0 gives torch's Adam. ``noise_floor`` is in units of it, where the paper has an absolute
    floor: so it needs no second search when noise, clip or batch change. All is post-processing of noised gradients."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        noise_std: float,
        noise_floor: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "noise_std": noise_std, "noise_floor": noise_floor})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    @torch.no_grad()
    def second_moment(self, p: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """The squared gradient without its noise, estimated, of p's shape; below zero at times where there is none."""
        state, beta = self.state[p], group["betas"][1]
        moment: Tensor = state["exp_avg_sq"] / (1 - beta ** state["step"])
        return moment - float(group["noise_std"]) ** 2

    def _update(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        if group["weight_decay"]:
            gradient = gradient.add(p, alpha=group["weight_decay"])
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        floor = (group["noise_floor"] * group["noise_std"]) ** 2
        size = self.second_moment(p, group).clamp_min(floor).sqrt().add_(group["eps"])
        p.addcdiv_(state["exp_avg"], size, value=-group["lr"] / (1 - beta1 ** state["step"]))

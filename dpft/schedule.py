"""Learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dpft.config import OptimizerSection
from dpft.config.optimizer_section import Schedule
from dpft.engine.adam_bc import AdamBC
from dpft.engine.plan import Plan
from dpft.engine.scaling import PrivatisedScale
from dpft.per_sample.capture import trainable


def factor(kind: Schedule, step: int, steps: int, warmup: float) -> float:
    """What the base rate is multiplied by at 0-based ``step`` of ``steps``.

    Rises linearly over the first ``warmup`` fraction; ``linear`` and ``cosine`` then fall to zero just after
    the last step.

    >>> [factor("linear", s, 4, 0.0) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    >>> [round(factor("cosine", s, 4, 0.0), 2) for s in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    left = (steps - step) / (steps - rise)
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[kind]


def build_optimizer(
    section: OptimizerSection, model: nn.Module, head: nn.Module, plan: Plan | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer, with the head's parameters at their own rate.

    ``plan`` says how much noise there is in its gradients; without one there is none. There are always two groups, and
    the first is empty where the head alone trains."""
    heads = {id(p) for p in head.parameters()}
    body = [p for p in model.parameters() if p.requires_grad and id(p) not in heads]
    groups: Iterable[dict[str, Any]] = [
        {"params": body, "lr": section.lr},
        {"params": list(head.parameters()), "lr": section.head_lr or section.lr},
    ]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adam-bc": AdamBC, "sgd": torch.optim.SGD}
    optimizer: torch.optim.Optimizer = kinds[section.name](groups, **_options(section, plan))
    return optimizer


def _options(section: OptimizerSection, plan: Plan | None) -> dict[str, Any]:
    given: dict[str, Any] = {"weight_decay": section.weight_decay}
    if section.name != "sgd":
        given |= {"betas": section.betas or (0.9, 0.999), "eps": section.eps or 1e-8}
    if section.name == "adam-bc":
        noise = plan.noise_of_mean if plan else 0.0
        given |= {"noise_std": noise, "noise_floor": section.noise_floor or 1.0}
    return given


def build_scale(section: OptimizerSection, model: nn.Module, plan: Plan) -> PrivatisedScale | None:
    """The recipe's scale over what trains in ``model``; None where it asks for none, or where there is no noise."""
    if section.scale == "none" or plan.noise_of_mean == 0:
        return None
    coordinates = sum(p.numel() for p in trainable(model).values())
    return PrivatisedScale(coordinates, plan, section.scale_every or 5)


def set_rates(optimizer: torch.optim.Optimizer, section: OptimizerSection, step: int, steps: int) -> None:
    """Give each group its base rate times :func:`factor`."""
    scale = factor(section.schedule, step, steps, section.warmup)
    for group, base in zip(optimizer.param_groups, (section.lr, section.head_lr or section.lr), strict=True):
        group["lr"] = base * scale

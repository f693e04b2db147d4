"""The truth that everything fast is compared with: one example at a time, plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpft.per_sample.batches import examples_in, take
from dpft.per_sample.capture import trainable

Loss = Callable[[nn.Module, Any], Tensor]


def per_example_gradients(model: nn.Module, loss: Loss, batch: Any) -> dict[str, Tensor]:
    """Gradients of each example alone: name -> [B, *shape]. A parameter that is not used gets zeros.

    ``loss(model, batch)`` returns one loss per example, [B]; here it only ever sees batches of one."""
    B = examples_in(batch)
    gradients = {name: p.new_zeros(B, *p.shape) for name, p in trainable(model).items()}
    for i in range(B):
        for name, g in one_example(model, loss, take(batch, slice(i, i + 1)))[1].items():
            gradients[name][i] = g
    return gradients


def one_example(model: nn.Module, loss: Loss, example: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradients by name) of a batch of one, by plain autograd; parameters that it does not use are absent."""
    params = trainable(model)
    value = loss(model, example)
    if not value.requires_grad:
        return value.detach(), {}
    found = torch.autograd.grad(value.sum(), list(params.values()), allow_unused=True)
    return value.detach(), {name: g for name, g in zip(params, found, strict=True) if g is not None}


def sq_norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """Squared norm of each example's dense gradients over all parameters, [B] float64."""
    return torch.stack([squares(g) for g in gradients.values()]).sum(dim=0)


def squares(g: Tensor, less: Tensor | None = None) -> Tensor:
    """Squared norm of each example's dense gradients ``g`` of one parameter, or of what they exceed ``less`` by (of the
    same shape), [B] float64.

    One example after the other: in float64 all of them together would take twice their memory again."""
    found = g.new_zeros(len(g), dtype=torch.float64)
    for i in range(len(g)):
        row = g[i].double() if less is None else g[i].to(torch.float64, copy=True).sub_(less[i])
        found[i] = torch.dot(row.flatten(), row.flatten())
        del row
    return found


def clipped_sum(gradients: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """``sum_b G_b min(1, bound / |G_b|)`` from dense gradients, in float64. Abadi et al. 2016, Algorithm 1."""
    wide = {name: g.double() for name, g in gradients.items()}
    scale = (bound / sq_norms(wide).sqrt()).clamp(max=1.0)
    return {name: torch.einsum("b,b...->...", scale, g) for name, g in wide.items()}

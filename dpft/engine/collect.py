"""Per-example gradients and losses of one micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import PrivacyError
from dpft.models.precision import products_in
from dpft.models.recompute import recomputing
from dpft.per_sample import Dense, Form, Uses, capture
from dpft.per_sample.batches import examples_in, take
from dpft.per_sample.capture import trainable
from dpft.per_sample.oracle import Loss, one_example


def collect(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    expected: int,
    uses: Uses | None = None,
    compute: torch.dtype = torch.float32,
) -> tuple[Mapping[str, Form], Tensor]:
    """Per-example gradients and losses [B] of one micro-batch of ``expected`` examples.

    ``uses`` is what the preflight learnt about the model. ``compute`` = bfloat16 runs the matrix products of the
    forward and backward pass in that type (autocast). Layers under activation checkpointing recompute in either mode.
    Raises :class:`PrivacyError` unless collate and loss both kept exactly one entry per example."""
    B = examples_in(batch)
    if expected != B:
        raise PrivacyError(f"Expected collate to keep {expected} examples apart, found a leading dimension of {B}.")
    if uses is not None and uses.alone:
        return _alone(model, loss, batch, compute)
    device = next(p.device for p in model.parameters() if p.requires_grad)
    with recomputing(model), capture(model, examples=B, uses=uses) as grads:
        with products_in(compute, device):
            losses = checked(loss(model, batch), B)
        if not losses.requires_grad:
            raise PrivacyError(
                "The loss does not depend on any trainable parameter: they would receive noise and no signal. "
                "Make parameters trainable that the forward pass uses."
            )
        losses.sum().backward()  # type: ignore[no-untyped-call]
    return grads, losses.detach()


def _alone(model: nn.Module, loss: Loss, batch: Any, compute: torch.dtype) -> tuple[Mapping[str, Form], Tensor]:
    """The same by plain autograd, one example after the other: exact, and slower by the number of examples."""
    params = trainable(model)
    device = next(iter(params.values())).device
    losses, rows = [], []
    for i in range(examples_in(batch)):
        with products_in(compute, device):
            value, found = one_example(model, loss, take(batch, slice(i, i + 1)))
        losses.append(checked(value, 1))
        rows.append(found)
    used = [name for name in params if any(name in row for row in rows)]
    zeros = {name: torch.zeros_like(params[name]) for name in used}
    forms = {name: Dense(torch.stack([row.get(name, zeros[name]) for row in rows])) for name in used}
    return forms, torch.cat(losses) if losses else torch.zeros(0)


def checked(losses: Any, B: int) -> Tensor:
    """Exactly one loss an example."""
    if isinstance(losses, Tensor) and losses.shape == (B,):
        return losses
    found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    raise PrivacyError(
        f"Expected loss(model, batch) to return one loss per example, shape ({B},), found {found}. "
        "Use reduction='none' and sum or average within each example only."
    )

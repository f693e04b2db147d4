"""Accuracy on records that did not train. Computed without noise: public only if those records are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dpft.engine.microbatch import Collate, Length, cut, token_length
from dpft.models.classifier import predictions
from dpft.models.precision import products_in
from dpft.per_sample.batches import to_device


def accuracy(
    model: nn.Module,
    examples: Sequence[Any],
    collate: Collate,
    token_budget: int,
    compute: torch.dtype = torch.float32,
    length: Length = token_length,
) -> float:
    """Share of ``examples`` (at least one) whose most likely class is their label."""
    device = next(model.parameters()).device
    lengths = [length(e) for e in examples]
    right = 0
    for piece in cut(range(len(examples)), lengths, token_budget):
        batch = to_device(collate([examples[i] for i in piece]), device)
        with products_in(compute, device):
            found = predictions(model, batch)
        right += int((found == batch["labels"]).sum())
    return right / len(examples)

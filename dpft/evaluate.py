"""Accuracy on records that did not train. Computed without noise: public only if those records are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dpft.engine.microbatch import Collate, cut, token_length
from dpft.models.classifier import predictions
from dpft.per_sample.batches import to_device


def accuracy(model: nn.Module, examples: Sequence[Any], collate: Collate, token_budget: int) -> float:
    """Share of ``examples`` (at least one) whose most likely class is their label."""
    device = next(model.parameters()).device
    lengths = [token_length(e) for e in examples]
    right = 0
    for piece in cut(range(len(examples)), lengths, token_budget):
        batch = to_device(collate([examples[i] for i in piece]), device)
        right += int((predictions(model, batch) == batch["labels"]).sum())
    return right / len(examples)

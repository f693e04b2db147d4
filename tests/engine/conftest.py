"""A small model with every kind of form, and data of unequal lengths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TinyText(nn.Module):
    """Tied embedding and head, a wide layer that stays factored, a norm. Logits [B, T, V]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 8)
        self.wide = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + self.wide(x).tanh()))


def next_token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy summed over each example's own tokens; -100 is ignored."""
    logits = model(batch["ids"])
    return F.cross_entropy(logits.movedim(-1, 1), batch["labels"], reduction="none").sum(dim=1)


@pytest.fixture
def tiny_text() -> nn.Module:
    return TinyText().double()


@pytest.fixture
def text_loss() -> Callable[[nn.Module, dict[str, Tensor]], Tensor]:
    return next_token_loss


@pytest.fixture
def text_batch() -> dict[str, Tensor]:
    """Five examples of 1 to 5 tokens, padded to 5."""
    g = torch.Generator().manual_seed(7)
    ids, labels = (torch.randint(0, 40, (5, 5), generator=g) for _ in range(2))
    beyond = torch.arange(5)[None, :] > torch.tensor([4, 0, 2, 3, 1])[:, None]
    return {"ids": ids.masked_fill(beyond, 0), "labels": labels.masked_fill(beyond, -100)}

"""The classifier: pooling reads an example's own tokens, and losses stay per example."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.models.classifier import Pooling, TextClassifier
from dpft.models.losses import classification_loss


class Encoder(nn.Module):
    """The smallest thing that looks like a transformers encoder."""

    def __init__(self, **width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 4)
        self.config = SimpleNamespace(**(width or {"hidden_size": 4}))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.embed(input_ids))


IDS = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])


def test_head_starts_at_zero_so_every_class_is_equally_likely() -> None:
    model = TextClassifier(Encoder(), 3, "cls", None)
    assert not model(IDS, MASK).any()
    loss = classification_loss(model, {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1, 2])})
    torch.testing.assert_close(loss, torch.full((3,), 3.0).log())


def test_mean_pooling_counts_unmasked_tokens_alone() -> None:
    """A5."""
    model = TextClassifier(Encoder(), 2, "mean", None)
    table = model.encoder.embed.weight
    expected = torch.stack([table[[1, 2, 3]].mean(0), table[[4, 5]].mean(0), table[6]])
    torch.testing.assert_close(model.features(IDS, MASK), expected)
    torch.testing.assert_close(model.features(IDS[1:2, :2], MASK[1:2, :2]), expected[1:2])


def test_cls_pooling_takes_the_first_token() -> None:
    model = TextClassifier(Encoder(), 2, "cls", None)
    assert torch.equal(model.features(IDS, MASK), model.encoder.embed.weight[[1, 4, 6]])


@pytest.mark.parametrize("left", [False, True])
def test_last_pooling_takes_the_last_unmasked_token_on_either_side_of_padding(left: bool) -> None:
    model = TextClassifier(Encoder(), 2, "last", None)
    ids, mask = (IDS.flip(1), MASK.flip(1)) if left else (IDS, MASK)
    expected = [1, 4, 6] if left else [3, 5, 6]
    assert torch.equal(model.features(ids, mask), model.encoder.embed.weight[expected])


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_feature_norm_is_the_norm_of_every_feature(pooling: Pooling) -> None:
    model = TextClassifier(Encoder(), 2, pooling, 2.5)
    torch.testing.assert_close(model.features(IDS, MASK).norm(dim=1), torch.full((3,), 2.5))


def test_example_without_tokens_gives_finite_logits() -> None:
    """A9: an empty text, all of it masked."""
    model = TextClassifier(Encoder(), 2, "mean", 1.0)
    logits = model(IDS, torch.zeros_like(MASK))
    logits.sum().backward()
    assert bool(torch.isfinite(logits).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_loss_is_one_number_an_example_and_depends_on_that_example_alone() -> None:
    """A3, A4."""
    model = TextClassifier(Encoder(), 3, "mean", None)
    nn.init.normal_(model.head.weight)
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1, 2])}
    losses = classification_loss(model, batch)
    assert losses.shape == (3,)
    for i in range(3):
        alone = classification_loss(model, {name: t[i : i + 1] for name, t in batch.items()})
        torch.testing.assert_close(alone[0], losses[i])
    torch.testing.assert_close(losses, F.cross_entropy(model(IDS, MASK), batch["labels"], reduction="none"))


def test_width_is_read_under_either_name() -> None:
    assert TextClassifier(Encoder(dim=4), 2, "cls", None).head.in_features == 4

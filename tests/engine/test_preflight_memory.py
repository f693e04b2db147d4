"""A7: what fits in memory in training fits in the preflight, which has a word of its own where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import BertConfig, BertModel

from dpft.engine.preflight import preflight
from dpft.errors import TrainingError
from dpft.models.recompute import recompute

IDS = torch.tensor([[1, 2, 3, 3, 7, 6], [4, 5, 1, 0, 2, 2], [8, 8, 8, 8, 1, 3]])


@pytest.fixture
def model() -> nn.Module:
    """The queries of three layers train."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 9}
    made = BertModel(BertConfig(**sizes, num_hidden_layers=3), add_pooling_layer=False)
    for name, p in made.named_parameters():
        p.requires_grad_("query" in name)
    return made


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).last_hidden_state.square().mean(dim=(1, 2))


def kept(model: nn.Module) -> int:
    """The most numbers that one pass of the preflight over more than one example keeps for its backward pass."""
    most = [0]

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        total = 0

        def keep(t: Tensor) -> Tensor:
            nonlocal total
            total += t.numel()
            return t

        with saved_tensors_hooks(keep, lambda t: t):
            found = losses(model, ids)
        most.append(total if len(ids) > 1 else 0)
        return found

    preflight(model, loss, IDS)
    return max(most)


@pytest.mark.parametrize("train", [False, True])
def test_every_pass_recomputes_where_training_does(model: nn.Module, train: bool) -> None:
    plain = kept(model.train(train))
    recompute(model)
    assert 3 * kept(model) < plain


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_running_out_of_memory_ends_with_a_remedy(model: nn.Module, error: Callable[..., Exception]) -> None:
    def loss(model: nn.Module, ids: Tensor) -> Any:
        raise error("simulated")

    with pytest.raises(TrainingError, match=r"do not fit in memory: shorten data.max_length, set train.recompute"):
        preflight(model, loss, IDS)

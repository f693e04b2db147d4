"""A7: in eval mode a layer that was told to recompute does so, and is in eval mode while it does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, MPNetConfig, MPNetModel

from dpft.engine.collect import collect
from dpft.engine.preflight import preflight
from dpft.errors import InputError
from dpft.models.recompute import recompute, recomputing

IDS = torch.tensor([[1, 2, 3, 3, 7, 6], [4, 5, 1, 0, 2, 2], [8, 8, 8, 8, 1, 3]])
LAYERS = 3


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 9}
    return BertModel(BertConfig(**sizes, num_hidden_layers=LAYERS, hidden_dropout_prob=0.5), add_pooling_layer=False)


def gpt2() -> nn.Module:
    """Which asks for a cache in eval mode; run twice it would hold every key twice."""
    return GPT2Model(GPT2Config(n_embd=16, n_head=2, n_layer=LAYERS, vocab_size=9, n_positions=8))


def made(build: Callable[[], nn.Module], *, reentrant: bool = False) -> Any:
    torch.manual_seed(0)
    model: Any = build()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    return model


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).last_hidden_state.square().mean(dim=(1, 2))


def watched(model: nn.Module) -> list[bool]:
    """The mode of a layer's feed-forward part, each time that one runs: it holds a dropout."""
    modes: list[bool] = []
    for module in model.modules():
        if type(module).__name__ in ("BertOutput", "GPT2MLP"):
            module.register_forward_pre_hook(lambda m, _: modes.append(m.training))
    return modes


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("build", [bert, gpt2])
def test_every_layer_runs_again_without_dropout(build: Callable[[], nn.Module], reentrant: bool) -> None:
    model = made(build, reentrant=reentrant).eval()
    plain = losses(model, IDS)
    truth = torch.autograd.grad(plain.sum(), list(model.parameters()))
    modes = watched(model)
    with recomputing(model):
        found = losses(model, IDS)
        found.sum().backward()
    assert torch.equal(found, plain)
    assert modes == [False] * (2 * LAYERS)
    for (name, p), g in zip(model.named_parameters(), truth, strict=True):
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("build", [bert, gpt2])
def test_private_gradients_are_the_same(build: Callable[[], nn.Module]) -> None:
    """In eval mode, in which a run trains unless dropout is asked for."""
    torch.manual_seed(0)
    model: Any = build().eval()
    uses = preflight(model, losses, IDS)
    plain, _ = collect(model, losses, IDS, expected=3, uses=uses)
    recompute(model)
    modes = watched(model)
    again, _ = collect(model, losses, IDS, expected=3, uses=uses)
    assert modes == [False] * (2 * LAYERS)
    assert again.keys() == plain.keys()
    for name, form in plain.items():
        torch.testing.assert_close(again[name].dense(), form.dense(), rtol=1e-5, atol=1e-7)


def test_a_model_without_such_layers_is_refused() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    with pytest.raises(InputError, match=r"found MPNetModel.*leave train.recompute out"):
        recompute(MPNetModel(MPNetConfig(**sizes, num_hidden_layers=1)))


@pytest.mark.parametrize("train", [False, True])
def test_modes_and_functions_are_put_back(train: bool) -> None:
    """After an error too."""
    model = made(bert).train(train)
    before = [(m.training, getattr(m, "_gradient_checkpointing_func", None)) for m in model.modules()]
    with pytest.raises(IndexError), recomputing(model):
        losses(model, IDS + 9)  # not in the vocabulary
    assert [(m.training, getattr(m, "_gradient_checkpointing_func", None)) for m in model.modules()] == before


def test_a_model_that_was_not_told_to_keeps_its_activations() -> None:
    model: Any = bert().eval()
    modes = watched(model)
    with recomputing(model):
        losses(model, IDS).sum().backward()
    assert len(modes) == LAYERS


def test_nothing_is_loaded_for_a_model_that_is_not_of_transformers() -> None:
    """It would take the first step a second."""
    code = (
        "import sys, torch\n"
        "from dpft.engine.collect import collect\n"
        "model = torch.nn.Linear(3, 1)\n"
        "collect(model, lambda m, x: m(x).sum(dim=1), torch.ones(2, 3), expected=2)\n"
        "print('transformers' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "False"

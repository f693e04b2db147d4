"""Frozen matrices in bfloat16: what is held, what is not, and that training does not notice."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import dpft
from dpft.engine.keystream import InsecureSeededWords
from dpft.models.held import HeldLinear, hold_frozen
from dpft.per_sample.capture import trainable

HALF = torch.bfloat16


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, attn_implementation="eager",
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=12)).eval()


def types(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: p.dtype for name, p in model.named_parameters()}


def test_matrices_and_their_biases_alone_are_held() -> None:
    """Tables, norms and all that trains stay in float32; what is held takes half of its memory."""
    model = dpft.attach(bert(), dpft.LoRA(rank=2), train=("classifier",))
    hold_frozen(model, HALF)
    linear = {
        f"{name}.{kind}"
        for name, m in model.named_modules()
        if isinstance(m, HeldLinear)
        for kind in ("weight", "bias")
    }
    assert {name for name, dtype in types(model).items() if dtype == HALF} == linear
    assert len(linear) == 2 * (2 * 6 + 1)  # six layers a block, and the pooler
    assert all(p.dtype == torch.float32 for p in trainable(model).values())
    before = types(model)
    hold_frozen(model, HALF)
    assert types(model) == before


def test_nothing_is_held_where_products_are_in_float32() -> None:
    model = bert().requires_grad_(False)
    hold_frozen(model, torch.float32)
    assert set(types(model).values()) == {torch.float32}


def test_a_head_that_is_tied_to_a_table_is_not_held() -> None:
    """The table is looked up in float32."""
    model = gpt2().requires_grad_(False)
    hold_frozen(model, HALF)
    found = types(model)
    assert found["transformer.wte.weight"] == torch.float32 == model.lm_head.weight.dtype
    assert found["transformer.h.0.attn.c_attn.weight"] == HALF == found["transformer.h.0.attn.c_attn.bias"]


@pytest.mark.parametrize(
    "method",
    [dpft.LoRA(rank=2, pattern="lock", targets=("query",)), dpft.LastLayers(k=1)],
    ids=["lock", "last-k"],
)
def test_what_a_method_multiplies_by_itself_is_not_held(method: Any) -> None:
    model = bert()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("query.weight"):
                p[:8] = 0.0
    dpft.attach(model, method, train=("classifier",))
    hold_frozen(model, HALF)
    found = types(model)
    own = [n for n in found if "query" in n and "lora" not in n and n.endswith("weight") and ("layer.1" in n)]
    assert own
    assert all(found[name] == torch.float32 for name in own)
    assert HALF in found.values()


def test_a_frozen_factor_is_released_as_it_was(tmp_path: Path) -> None:
    """FFA trains B alone; A belongs to the adapter all the same."""
    method = dpft.LoRA(rank=2, freeze_a=True)
    model = dpft.attach(bert(), method, train=("classifier",))
    hold_frozen(model, HALF)
    assert {d for name, d in types(model).items() if "lora" in name} == {torch.float32}
    dpft.save_adapter(model, method, tmp_path, base="tiny", train=("classifier",))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any("lora_A" in name for name in saved)
    assert {t.dtype for t in saved.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_outside_of_autocast_the_rounded_weights_count_in_the_inputs_type(kind: str) -> None:
    torch.manual_seed(1)
    layer: nn.Module = nn.Linear(5, 7) if kind == "linear" else Conv1D(7, 5)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(p.to(HALF).float())
    hold_frozen(layer.requires_grad_(False), HALF)
    for x in (torch.randn(3, 4, 5), torch.randn(2, 5).double(), torch.randn(0, 4, 5)):
        held = copy.deepcopy(layer)(x)
        assert held.dtype == x.dtype
        torch.testing.assert_close(held, copy.deepcopy(plain).to(x.dtype)(x), rtol=1e-6, atol=1e-6)
    wide = []
    x, y = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    with saved_tensors_hooks(lambda t: wide.append(t.dtype) or t if t.shape in ((5, 7), (7, 5)) else t, lambda t: t):
        (into,) = torch.autograd.grad(layer(x).sin().sum(), x)
    assert wide == [HALF]  # nothing wide is kept for the backward pass
    with torch.no_grad():
        y.copy_(x)
    torch.testing.assert_close(into, torch.autograd.grad(plain(y).sin().sum(), y)[0], rtol=1e-6, atol=1e-6)
    assert layer(torch.randn(2, 5).to(HALF)).dtype == torch.float32  # never in fewer digits than the weights' use needs


@pytest.mark.parametrize("make", [bert, gpt2])
def test_training_is_the_same_bit_for_bit(make: Any, tmp_path: Path) -> None:
    """E1: autocast rounds a weight as holding it does; noise, batches and start are equal here."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=batch["input_ids"]).logits.float()
        logits = logits if logits.dim() == 2 else logits[:, -1]
        return F.cross_entropy(logits, batch["labels"], reduction="none")

    g = torch.Generator().manual_seed(2)
    data = [{"input_ids": torch.randint(50, (9,), generator=g), "labels": i % 2} for i in range(24)]
    plan = dpft.plan(noise_multiplier=1.0, delta=1e-5, examples=24, expected_batch=8, steps=3, clip=1.0)
    ends = []
    for held in (False, True):
        model = dpft.attach(make(), dpft.LoRA(rank=2))
        if held:
            hold_frozen(model, HALF)
        assert (HALF in types(model).values()) == held
        params = trainable(model)
        optimizer = torch.optim.Adam(params.values(), lr=0.01)
        with dpft.PrivateEngine(
            model, optimizer, plan, loss=loss, ledger=tmp_path / f"{held}.jsonl", compute=HALF,
            words=InsecureSeededWords(5),
        ) as engine:  # fmt: skip
            for batch in engine.batches(data, torch.utils.data.default_collate):
                engine.step(batch)
        ends.append(torch.cat([p.detach().flatten() for p in params.values()]))
    assert torch.equal(*ends)

"""Ladder side-tuning: how side blocks start, as the most important rows and columns of the backbone's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.models.classifier import TextClassifier
from dpft.models.losses import classification_loss
from dpft.peft import Ladder, attach
from dpft.peft.method import Public
from dpft.peft.registry import cells
from dpft.public import drawn_head_loss

FAMILIES = sorted({c.family for c in cells()})


def parts_of(model: nn.Module) -> list[Any]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] == "ladder"]


@pytest.mark.parametrize("family", FAMILIES)
def test_as_wide_as_the_backbone_the_side_network_starts_as_its_copy(family: str, task: Callable[..., Any]) -> None:
    """Every parameter finds its source: with nothing to leave out, all are equal, in the order that they have."""
    t = task(family)
    attach(t.model, Ladder(reduction=1))
    for host in [m for m in t.model.modules() if hasattr(m, "ladder")]:
        own = dict(host.named_parameters())
        side = dict(host.ladder.side.named_parameters())
        assert len(side) > 10
        assert all(torch.equal(p, own[name]) for name, p in side.items())


def raised(weight: Tensor, rows: list[int], columns: list[int], transposed: bool = False) -> None:
    """Numbers of about 1/100, and larger ones in ``rows`` and in ``columns``."""
    with torch.no_grad():
        drawn = 0.01 * torch.rand(weight.T.shape if transposed else weight.shape)
        drawn[rows] += 1
        drawn[:, columns] += 1
        weight.copy_(drawn.T if transposed else drawn)


RESIDUAL, INSIDE = [0, 3, 5, 6], [1, 4, 6, 7]
TURNED, VALUES = [1, 2, 4, 7], [0, 1, 6, 7]  # two heads of four: two of each are kept


def test_the_highest_rows_and_columns_are_kept_head_by_head() -> None:
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    model: Any = transformers.BertModel(config)
    block = model.encoder.layer[0]
    attention, out = block.attention.self, block.attention.output
    raised(attention.query.weight, TURNED, RESIDUAL)
    raised(attention.key.weight, TURNED, RESIDUAL)
    raised(attention.value.weight, VALUES, RESIDUAL)
    raised(out.dense.weight, RESIDUAL, VALUES)
    raised(block.intermediate.dense.weight, INSIDE, RESIDUAL)
    raised(block.output.dense.weight, RESIDUAL, INSIDE)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.copy_(torch.rand(p.shape))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    attach(model, Ladder(reduction=2))
    side = dict(parts_of(model)[0].side.named_parameters())

    def expect(name: str, rows: list[int], columns: list[int] | None = None) -> None:
        name = f"encoder.layer.0.{name}"
        source = before[name][rows]
        assert torch.equal(side[name], source if columns is None else source[:, columns])

    for name, rows, columns in (
        ("attention.self.query", TURNED, RESIDUAL),
        ("attention.self.key", TURNED, RESIDUAL),
        ("attention.self.value", VALUES, RESIDUAL),
        ("attention.output.dense", RESIDUAL, VALUES),
        ("intermediate.dense", INSIDE, RESIDUAL),
        ("output.dense", RESIDUAL, INSIDE),
    ):
        expect(f"{name}.weight", rows, columns)
        expect(f"{name}.bias", rows)
    expect("attention.output.LayerNorm.weight", RESIDUAL)
    expect("output.LayerNorm.bias", RESIDUAL)


def test_a_fused_transposed_projection_keeps_query_key_and_value_apart() -> None:
    config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=8, n_inner=8)
    model: Any = transformers.GPT2Model(config)
    block = model.h[0]
    fused = [*TURNED, *(8 + i for i in TURNED), *(16 + i for i in VALUES)]
    raised(block.attn.c_attn.weight, fused, RESIDUAL, transposed=True)
    raised(block.attn.c_proj.weight, RESIDUAL, VALUES, transposed=True)
    raised(block.mlp.c_fc.weight, INSIDE, RESIDUAL, transposed=True)
    raised(block.mlp.c_proj.weight, RESIDUAL, INSIDE, transposed=True)
    weight = block.attn.c_attn.weight.detach().clone()
    attach(model, Ladder(reduction=2))
    assert torch.equal(parts_of(model)[0].side.h[0].attn.c_attn.weight, weight[RESIDUAL][:, fused])


def test_turned_queries_keep_the_pairs_whose_angles_the_side_network_has() -> None:
    """Rotary: number j of a head is turned with j + D/2, by a frequency that falls with j. Grouped heads share keys."""
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model: Any = transformers.LlamaModel(config)
    attach(model, Ladder(reduction=2))
    (part,) = parts_of(model)
    assert torch.equal(part.side.rotary_emb.inv_freq, model.rotary_emb.inv_freq[[0, 2]])
    query, key = (getattr(model.layers[0].self_attn, f"{x}_proj").weight for x in "qk")
    side_query, side_key = (getattr(part.side.layers[0].self_attn, f"{x}_proj").weight for x in "qk")
    columns = [i for i in range(16) if any(torch.equal(side_key[:, n], key[[0, 2, 4, 6], i]) for n in range(8))]
    assert len(columns) == 8
    assert torch.equal(side_key, key[[0, 2, 4, 6]][:, columns])
    assert torch.equal(side_query, query[[0, 2, 4, 6, 8, 10, 12, 14]][:, columns])


def test_new_side_blocks_are_drawn_by_the_seed_alone(tiny_encoder: Any) -> None:
    method = Ladder(reduction=2, init="random")
    before = torch.get_rng_state()
    made = [copy.deepcopy(tiny_encoder("gpt2")) for _ in range(3)]
    torch.set_rng_state(before)
    attach(made[0], method, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    attach(made[1], method, seed=3)
    attach(made[2], method, seed=4)
    one, same, other = (list(parts_of(model)[0].side.parameters()) for model in made)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a.dim() > 1)


@pytest.fixture
def public_task() -> Callable[[], tuple[TextClassifier, Public]]:
    def make() -> tuple[TextClassifier, Public]:
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=23, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
            max_position_embeddings=8,
        )  # fmt: skip
        model = TextClassifier(transformers.BertModel(config), 2, "mean", None).eval()
        g = torch.Generator().manual_seed(1)
        batches = [
            {"input_ids": torch.randint(1, 23, (3, 5), generator=g), "attention_mask": torch.ones(3, 5).long(),
             "labels": torch.tensor([0, 1, 1])}
            for _ in range(2)
        ]  # fmt: skip
        return model, Public(batches, drawn_head_loss(model, classification_loss, 0))

    return make


def test_fisher_chooses_by_squared_gradients_of_single_records(public_task: Any) -> None:
    model, public = public_task()
    bare = copy.deepcopy(model)
    inner = [bare.encoder.encoder.layer[i].intermediate.dense.weight for i in range(2)]
    outer = [bare.encoder.encoder.layer[i].output.dense.weight for i in range(2)]
    score = [torch.zeros(12) for _ in range(2)]
    for batch in public.batches:
        for i in range(3):
            one = {name: t[i : i + 1] for name, t in batch.items()}
            grads = torch.autograd.grad(public.loss(bare, one).sum(), [*inner, *outer])
            for n in range(2):
                score[n] += grads[n].square().sum(1) + grads[n + 2].square().sum(0)
    attach(model, Ladder(reduction=2, init="fisher"), train=("head",), public=public)
    (part,) = parts_of(model)
    for n in range(2):
        chosen = sorted(score[n].argsort(descending=True)[:6].tolist())
        bias = bare.encoder.encoder.layer[n].intermediate.dense.bias
        assert torch.equal(part.side.encoder.layer[n].intermediate.dense.bias, bias[chosen])
        weight = part.side.encoder.layer[n].intermediate.dense.weight
        source = inner[n][chosen]
        assert all(any(torch.equal(weight[:, c], source[:, i]) for i in range(8)) for c in range(4))
    assert part.enabled
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"encoder", "head"}
    assert not any(p.requires_grad for n, p in model.named_parameters() if "ladder" not in n and "head" not in n)


def test_fisher_wants_public_records_with_a_gradient(public_task: Any) -> None:
    model, public = public_task()
    with pytest.raises(InputError, match="public"):
        attach(model, Ladder(reduction=2, init="fisher"), train=("head",))
    still = Public(public.batches, classification_loss)  # the head is at zero
    with pytest.raises(InputError, match="all zero"):
        attach(model, Ladder(reduction=2, init="fisher"), train=("head",), public=still)
    assert not parts_of(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(InputError, match="loss"):
        attach(model, Ladder(reduction=2, init="fisher"), train=("head",), public=Public(public.batches))


def test_a_cross_attention_keeps_the_columns_that_the_side_encoder_writes(tiny_encoder: Any) -> None:
    """Encoder and decoder each have residual numbers of their own; relative positions come from the first block."""
    bare, model = tiny_encoder("t5"), tiny_encoder("t5")
    for m in (bare, model):
        with torch.no_grad():
            for place, stack in enumerate((m.encoder, m.decoder)):
                kept = range(place, 16, 2)  # even numbers in the encoder, odd ones in the decoder
                for block in stack.block:
                    block.layer[-1].DenseReluDense.wo.weight[list(kept)] += 5.0
    attach(model, Ladder(reduction=2, keep=(1,)))
    for part, stack in zip(parts_of(model), (bare.encoder, bare.decoder), strict=True):
        own, source = part.side.block[0].layer[0].SelfAttention, stack.block[0].layer[0].SelfAttention
        assert torch.equal(own.relative_attention_bias.weight, source.relative_attention_bias.weight)
    inner = parts_of(model)[1].side.block[0].layer[1].EncDecAttention
    outer = bare.decoder.block[1].layer[1].EncDecAttention
    for name, first in (("k", 0), ("v", 0), ("q", 1)):
        source = getattr(outer, name).weight[:, first::2]
        rows = [any(torch.equal(row, other) for other in source) for row in getattr(inner, name).weight]
        assert len(rows) == 8
        assert all(rows)
    assert all(any(torch.equal(c, o) for o in outer.o.weight[1::2].T) for c in inner.o.weight.T)

"""A prefix is what a cache of keys and values is to the model, in both implementations of attention; and it is this
model's alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache

from dpft.errors import InputError
from dpft.interop.peft_format import adapter_tensors
from dpft.peft import Method, PrefixTuning, PromptTuning, attach
from dpft.peft.families import FAMILIES
from dpft.peft.prefix import INTERFACE, Prefix, attend
from dpft.per_sample import capture

FAMILIES_WITH = [f for f in FAMILIES if FAMILIES[f].interface]
P, METHOD = 3, PrefixTuning(length=3, init_std=0.7)


def inputs(family: str) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    if family == "vit":
        return {"pixel_values": torch.randn(3, 3, 8, 8, generator=g, dtype=torch.float64)}
    mask = (torch.arange(5) < torch.tensor([5, 2, 4])[:, None]).long()
    found = {"input_ids": torch.randint(3, 23, (3, 5), generator=g), "attention_mask": mask}
    if family == "t5":
        found["decoder_input_ids"] = torch.randint(3, 23, (3, 4), generator=g)
    return found


def hidden(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**batch).last_hidden_state
    return out


def parts(model: nn.Module) -> list[Prefix]:
    return [m for m in model.modules() if isinstance(m, Prefix)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "gpt2", "llama"])
def test_equals_a_cache_that_holds_it(
    family: str, attention: str, masked: bool, tiny_encoder: Callable[..., Any]
) -> None:
    """transformers' own way to give these families further keys and values; positions as without them."""
    base = tiny_encoder(family, attention)
    model = attach(copy.deepcopy(base), METHOD)
    batch = inputs(family)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    mask = mask if masked else torch.ones_like(mask)
    cache = DynamicCache(config=base.config)
    for i, part in enumerate(parts(model)):
        heads = 1 if family == "llama" else 2
        keys, values = part.prefix.detach().reshape(2, P, heads, 8).transpose(1, 2)
        cache.update(keys.expand(3, -1, -1, -1), values.expand(3, -1, -1, -1), i)
    first = 1 + base.embeddings.padding_idx if family == "roberta" else 0
    with torch.no_grad():
        expected = base(
            input_ids=ids,
            attention_mask=torch.cat([mask.new_ones(3, P), mask], dim=1),
            position_ids=torch.arange(first, first + 5).expand(3, -1),
            past_key_values=cache,
        ).last_hidden_state
    found = hidden(model, {"input_ids": ids, "attention_mask": mask} if masked else {"input_ids": ids})
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES_WITH)
def test_both_implementations_of_attention_agree(family: str, tiny_encoder: Callable[..., Any]) -> None:
    """Padded, and unpadded, where "sdpa" gets no mask and would leave causality to its kernel."""
    # float32, since an eager softmax in it gives nan where a float64 row is masked throughout.
    base = tiny_encoder(family, "sdpa").float()
    sdpa, eager = attach(copy.deepcopy(base), METHOD), copy.deepcopy(base)
    eager.set_attn_implementation("eager")
    attach(eager, METHOD)
    padded = inputs(family)
    full = {k: torch.ones_like(v) if k == "attention_mask" else v for k, v in padded.items()}
    for batch in (padded, full, {k: v for k, v in padded.items() if k != "attention_mask"}):
        at = batch["attention_mask"].bool() if "attention_mask" in batch and family != "t5" else ...
        found = hidden(eager, batch)[at]
        torch.testing.assert_close(found, hidden(sdpa, batch)[at], rtol=1e-4, atol=1e-4)
        assert (found - hidden(base, batch)[at]).abs().max() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_attention_by_hand(attention: str, bias: bool, causal: bool, tiny_encoder: Callable[..., Any]) -> None:
    """softmax(q [k', k]^T + [0, bias]) [v', v], a prefix's keys seen by all and without a bias of positions."""
    stacks = attach(tiny_encoder("t5", attention), METHOD)
    module = (stacks.decoder if causal else stacks.encoder).block[0].layer[0].SelfAttention
    q, k, v = torch.randn(3, 2, 2, 5, 8, dtype=torch.float64)
    table = torch.randn(1, 2, 5, 5, dtype=torch.float64) if bias else torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    own = module.prefix.prefix.detach().reshape(2, P, 2, 8).transpose(1, 2)
    keys, values = (torch.cat([o.expand(2, -1, -1, -1), x], dim=2) for o, x in zip(own, (k, v), strict=True))
    scores = q @ keys.mT + torch.cat([torch.zeros(1, 2, 5, P), table], dim=3)
    mask = None
    if causal:
        allowed = torch.cat([torch.ones(5, P), torch.ones(5, 5).tril()], dim=1).bool()
        scores = scores.masked_fill(~allowed, -torch.inf)
        if attention == "eager":  # which is always given a mask
            mask = torch.zeros(1, 1, 5, 5, dtype=torch.float64).masked_fill(~allowed[:, P:], -1e300)
    expected = torch.softmax(scores, dim=3) @ values
    with torch.no_grad():
        given = {"scaling": 1.0, "position_bias": table} if bias else {"scaling": 1.0}
        found, _ = attend(module, q, k, v, mask, **given)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_generate_with_and_without_a_cache(family: str, task: Callable[..., Any]) -> None:
    model = attach(task(family, "sdpa").model, PrefixTuning(length=3, init_std=2.0))
    ids = inputs("gpt2")["input_ids"]
    settings: Any = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        cached = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **settings)
        plain = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **settings)
        base = task(family, "sdpa").model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, base)


def test_no_other_model_sees_it() -> None:
    """Not even one with the same configuration; switched off or taken out the model is as it was."""
    config = AutoModel.from_config  # readable below
    from transformers import BertConfig

    shared = BertConfig(vocab_size=23, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    torch.manual_seed(0)
    one, other = (config(shared).double().eval() for _ in range(2))
    batch = inputs("bert")
    before = [hidden(m, batch) for m in (one, other)]
    attach(one, METHOD)
    assert one.config._attn_implementation == other.config._attn_implementation == "sdpa"
    assert one.encoder.layer[1].attention.self.config._attn_implementation == INTERFACE
    assert torch.equal(hidden(other, batch), before[1])
    assert not torch.equal(hidden(one, batch), before[0])
    copied = copy.deepcopy(one)
    assert torch.equal(hidden(copied, batch), hidden(one, batch))
    for part in parts(one):
        part.enabled = False
    assert torch.equal(hidden(one, batch), before[0])
    for layer in one.encoder.layer:
        attention = layer.attention.self
        attention.prefix.take_out(attention, "prefix")
        assert attention.config is one.config
    assert torch.equal(hidden(one, batch), before[0])
    assert not torch.equal(hidden(copied, batch), before[0])


def test_the_implementation_may_change_afterwards(tiny_encoder: Callable[..., Any]) -> None:
    """The masks follow the model's setting, and so does the attention."""
    model = attach(tiny_encoder("gpt2", "sdpa"), METHOD)
    before = hidden(model, inputs("gpt2"))
    model.set_attn_implementation("eager")
    torch.testing.assert_close(hidden(model, inputs("gpt2")), before, rtol=1e-9, atol=1e-9)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(InputError, match="found 'flex_attention'"):
        _ = parts(model)[0].implementation


def test_refusals_leave_the_model_as_it_was(tiny_encoder: Callable[..., Any]) -> None:
    for family, says in (("deberta-v2", "computed in its own way"), ("mpnet", "computed in its own way")):
        model = tiny_encoder(family)
        with pytest.raises(InputError, match=says):
            attach(model, METHOD)
        assert not parts(model)
    model = tiny_encoder("bert")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(InputError, match="flex_attention"):
        attach(model, METHOD)
    model = tiny_encoder("gpt2")
    model.h[1].attn.reorder_and_upcast_attn = True
    with pytest.raises(InputError, match="reorder_and_upcast_attn"):
        attach(model, METHOD)
    assert not parts(model)
    for fields in ({"length": 0}, {"init_std": 0.0}):
        with pytest.raises(InputError, match=next(iter(fields))):
            PrefixTuning(**fields)  # type: ignore[arg-type]


def test_every_attention_has_one_and_all_are_saved(tiny_encoder: Callable[..., Any]) -> None:
    """T5's cross-attention too; of Llama's keys, as many heads as it has of them (1 of 2)."""
    for family, count, width in (("t5", 2 + 2 * 2, 16), ("llama", 2, 8), ("modernbert", 2, 16)):
        model = attach(tiny_encoder(family), METHOD)
        shapes = [tuple(t.shape) for t in adapter_tensors(model, METHOD).values()]
        assert shapes == count * [(2, P, width)]


@pytest.mark.parametrize("method", [METHOD, PromptTuning(length=3)], ids=lambda m: m.name)
def test_activation_checkpointing_changes_nothing(method: Method, task: Callable[..., Any]) -> None:
    """Attention runs twice then, and the second time inside the backward pass."""
    t = task("gpt2", "sdpa")
    attach(t.model, method)
    for m in t.model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            t.model.activation_checkpointing_enable()
        with capture(t.model.train()) as grads:
            t.loss(t.model, t.batch).sum().backward()
        found.append({name: form.dense() for name, form in grads.items()})
    assert found[0].keys() == found[1].keys()
    for name, g in found[0].items():
        assert g.any()
        torch.testing.assert_close(found[1][name], g, rtol=1e-9, atol=1e-12)

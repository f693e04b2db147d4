"""Pruning a trained model: what goes, exactly how much, and that it is gone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dpft
from dpft.errors import InputError
from dpft.peft import DSEE, IA3, Adapter, LoRA, attach
from dpft.peft.families import at, is_linear
from dpft.peft.lora import LoRALinear
from dpft.peft.prune import Pruning, masks, sparsity
from dpft.peft.pruned import Pruned

ROLES: Any = ("query", "key", "value", "attention_proj", "ffn_in", "ffn_proj")
FAMILIES = ["bert", "deberta-v2", "distilbert", "gpt2", "llama", "modernbert", "mpnet", "t5", "vit"]


def trained(model: nn.Module, method: Any) -> nn.Module:
    attach(model, method)
    g = torch.Generator().manual_seed(4)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g).to(p) * p.requires_grad
    return model


def dsee(**fields: Any) -> DSEE:
    return DSEE(rank=2, nonzeros=5, **fields)


def linears(model: nn.Module) -> dict[str, Any]:
    """Of a model without a method."""
    inside = re.compile(r"(layer|layers|h|block)\.\d+\.")
    return {name: m for name, m in model.named_modules() if inside.search(name) and is_linear(m)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_exactly_the_share_is_zero_in_the_folded_model(
    family: str, scope: Any, tiny_encoder: Callable[..., Any]
) -> None:
    """And everything else is what merging alone leaves."""
    expected = linears(dpft.merge(trained(tiny_encoder(family), dsee())))
    model = trained(tiny_encoder(family), dsee())
    found = dpft.prune(model, 0.3, scope=scope)
    layers = linears(model)
    assert found.keys() == layers.keys() == expected.keys()
    zeros = {name: int((m.weight == 0).sum()) for name, m in layers.items()}
    total = sum(m.weight.numel() for m in layers.values())
    assert sparsity(found) == (sum(zeros.values()), total)
    if scope == "global":
        assert sum(zeros.values()) == round(0.3 * total)
    else:
        assert zeros == {name: round(0.3 * m.weight.numel()) for name, m in layers.items()}
    for name, layer in layers.items():
        assert torch.equal(layer.weight, expected[name].weight * found[name])
        assert layer.bias is None or torch.equal(layer.bias, expected[name].bias)


def scores(model: nn.Module) -> dict[str, Tensor]:
    """|B A + S2| in the adapted rows, |W| elsewhere: entry by entry, in [O, I]."""
    found = {}
    for name, m in at(model, *ROLES):
        base = m.base_layer if isinstance(m, LoRALinear) else m
        if not is_linear(base):
            continue
        found[name] = (base.weight if isinstance(base, nn.Linear) else base.weight.T).detach().abs().clone()
        if isinstance(m, LoRALinear):
            A, B = m.factors()
            change = B @ A
            for row, col, value in zip(m.rows, m.cols, m.values.detach(), strict=True):
                change[row, col] += value
            touched = change.abs().sum(dim=1) > 0
            found[name][touched] = change[touched].abs()
    return found


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_lowest_scores_go(family: str, tiny_encoder: Callable[..., Any]) -> None:
    """Of the residual where there is one, as in the paper; a fused layer's keys have none."""
    model = trained(tiny_encoder(family), dsee())
    values = scores(model)
    found = masks(model, Pruning(0.3))
    stays, goes = [], []
    for name, mask in found.items():
        rows = mask if mask.shape == values[name].shape and family == "bert" else mask.T
        stays.append(values[name][rows])
        goes.append(values[name][~rows])
    assert float(torch.cat(goes).max()) <= float(torch.cat(stays).min())
    assert all(torch.equal(masks(model, Pruning(0.3))[name], mask) for name, mask in found.items())


def test_equal_scores_do_not_change_the_number(tiny_encoder: Callable[..., Any]) -> None:
    model = tiny_encoder("bert")
    for layer in linears(model).values():
        layer.weight.data.fill_(1.0)
    assert sparsity(masks(model, Pruning(0.25)))[0] == round(0.25 * sparsity(masks(model, Pruning(0.25)))[1])


def test_what_is_pruned_already_goes_first(tiny_encoder: Callable[..., Any]) -> None:
    """A second pruning counts the first one in."""
    model = trained(tiny_encoder("bert"), dsee(pruned=True))
    first = masks(model, Pruning(0.2))
    layers = {n.removesuffix(".base_layer"): m for n, m in model.named_modules() if isinstance(m, Pruned)}
    assert layers.keys() == first.keys()
    for name, mask in first.items():
        layers[name].keep(mask)
    second = masks(model, Pruning(0.5))
    assert sparsity(second)[0] == round(0.5 * sparsity(second)[1])
    assert not any((second[name] & ~mask).any() for name, mask in first.items())


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "distilbert", "gpt2", "modernbert", "mpnet", "vit"])
def test_a_dropped_head_reaches_nothing(family: str, task: Callable[..., Any]) -> None:
    """The weaker by the sums of its query and value rows; exactly the rows and columns of one head of two."""
    t = task(family)
    trained(t.model, dsee())
    values = scores(t.model)
    parts = {role: [n for n, m in at(t.model, role)] for role in ("query", "key", "value", "attention_proj")}
    found = dpft.prune(t.model, heads=1)
    for query, key, value, after in zip(*parts.values(), strict=True):
        fused = query == value
        rows = {part: slice(16 * i, 16 * i + 16) if fused else slice(0, 16) for i, part in enumerate("qkv")}
        strength = (values[query][rows["q"]] + values[value][rows["v"]]).view(2, 8, 16).sum(dim=(1, 2))
        dead = slice(8, 16) if strength[1] < strength[0] else slice(0, 8)
        expected = torch.ones(16, dtype=torch.bool)
        expected[dead] = False
        for name, part in zip((query, key, value), "qkv", strict=True):
            mask = found[name].T if family == "gpt2" else found[name]
            assert torch.equal(mask[rows[part]], expected[:, None].expand(16, 16))
        mask = found[after].T if family == "gpt2" else found[after]
        assert torch.equal(mask, expected.expand(16, 16))
    attention = {name for names in parts.values() for name in names}
    assert all(mask.all() for name, mask in found.items() if name not in attention)
    # What such a head computes reaches nothing: whatever its query, key and value do, nothing changes.
    before = t.logits()
    for name, mask in found.items():
        if name not in parts["attention_proj"]:
            weight = t.model.get_submodule(name).weight
            assert not weight[~mask].any()
            weight.data[~mask] = torch.randn(int((~mask).sum()), dtype=weight.dtype)
    assert torch.equal(t.logits(), before)


@pytest.mark.parametrize("method", [LoRA(rank=2), IA3()], ids=["lora", "ia3"])
def test_other_methods_that_merge_can_be_pruned(method: Any, tiny_encoder: Callable[..., Any]) -> None:
    model = trained(tiny_encoder("bert"), method)
    zeros, total = sparsity(dpft.prune(model, 0.1))
    assert zeros == round(0.1 * total) == sum(int((m.weight == 0).sum()) for m in linears(model).values())


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "both": ("bert", {"ratio": 0.2, "heads": 1}, "either ratio or heads"),
    "neither": ("bert", {}, "either ratio or heads"),
    "nothing": ("bert", {"ratio": 0.0}, "ratio=0.0"),
    "everything": ("bert", {"ratio": 1.0}, "ratio=1.0"),
    "no heads": ("bert", {"heads": 0}, "heads=0"),
    "heads true": ("bert", {"heads": True}, "heads=True"),
    "all heads": ("bert", {"heads": 2}, "fewer than the 2 heads"),
    "scope": ("bert", {"ratio": 0.2, "scope": "row"}, "scope='row'"),
    "shared heads": ("llama", {"heads": 1}, "share keys and values"),
    "cross-attention": ("t5", {"heads": 1}, "two kinds"),
}


@pytest.mark.parametrize(("family", "arguments", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_model_unchanged(
    family: str, arguments: dict[str, Any], words: str, tiny_encoder: Callable[..., Any]
) -> None:
    model = trained(tiny_encoder(family), dsee())
    modules, state = list(model.modules()), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=words):
        dpft.prune(model, **arguments)
    assert list(model.modules()) == modules
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_method_without_a_merged_form_is_refused(tiny_encoder: Callable[..., Any]) -> None:
    model = trained(tiny_encoder("bert"), Adapter(bottleneck=4))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match="no merged form"):
        dpft.prune(model, 0.2)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

"""DSEE by itself: what it computes, where its single weights are, what is kept, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import dpft
from dpft.errors import InputError
from dpft.interop.peft_format import adapter_tensors, restore
from dpft.peft import DSEE, attach, merge
from dpft.peft.dsee import DSEELinear
from dpft.peft.pruned import Pruned, packed, unpacked
from dpft.per_sample import capture

BASES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 9),
    "conv1d": lambda: Conv1D(9, 7),
    "square conv1d": lambda: Conv1D(9, 9),
    "no bias": lambda: nn.Linear(9, 9, bias=False),
}
EACH_BASE = pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())


def layer(make: Callable[[], nn.Module], *, seed: int = 0, **fields: Any) -> DSEELinear:
    """Away from its start, where B and S2 hide what is before them."""
    torch.manual_seed(0)
    model = attach(nn.Sequential(make()).double(), DSEE(rank=2, nonzeros=3, targets=("0",), **fields), seed=seed)
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p) * p.requires_grad
    found = model[0]
    assert isinstance(found, DSEELinear)
    return found


def dense(m: DSEELinear) -> Tensor:
    """S2 laid out, entry by entry."""
    S2 = torch.zeros(m.outputs, m.inputs, dtype=torch.float64)
    for row, col, value in zip(m.rows.tolist(), m.cols.tolist(), m.values.tolist(), strict=True):
        S2[row, col] += value
    return S2


@EACH_BASE
@pytest.mark.parametrize("leading", [(3,), (3, 5), (3, 2, 5), (0, 5)], ids=str)
def test_adds_both_residuals_scaled(make: Callable[[], nn.Module], leading: tuple[int, ...]) -> None:
    """y = W x + alpha/r (B A + S2) x, S2 as a matrix; merged it is one layer that computes the same."""
    m = layer(make, alpha=5.0)
    x = torch.randn(*leading, m.inputs, dtype=torch.float64)
    change = m.lora_B.weight @ m.lora_A.weight + dense(m)  # type: ignore[operator]
    expected = m.base_layer(x) + 2.5 * x @ change.T
    torch.testing.assert_close(m(x), expected)
    torch.testing.assert_close(merge(nn.Sequential(m))(x), expected)


@EACH_BASE
@pytest.mark.parametrize("shape", [(3,), (3, 4), (1, 4), (0, 4)], ids=str)
def test_gradients_equal_one_example_at_a_time(
    make: Callable[[], nn.Module], shape: tuple[int, ...], agree: Callable[..., Any]
) -> None:
    """A6: and those of S2 are N numbers an example, never a matrix."""
    m = layer(make)
    x = torch.randn(*shape, m.inputs, dtype=torch.float64)
    grads = agree(m, lambda m, x: m(x).sin().flatten(1).sum(dim=1), x)
    assert grads["values"].numel == shape[0] * 3


def test_the_gradient_of_a_single_weight_is_the_entry_of_the_matrixs(close: Callable[..., None]) -> None:
    """sum_t g[t, row] x[t, col], times the scaling."""
    m, x, g = layer(BASES["linear"]), torch.randn(4, 5, 7, dtype=torch.float64), torch.randn(4, 5, 9).double()
    with capture(m) as grads:
        (m(x) * g).sum().backward()
    matrix = m.scaling * torch.einsum("bto,bti->boi", g, x)
    close(grads["values"].dense(), matrix[:, m.rows, m.cols])


def test_start_of_the_paper() -> None:
    model = attach(nn.Sequential(nn.Linear(400, 100)), DSEE(targets=("0",)))
    m: Any = model[0]
    assert float(m.lora_A.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not m.lora_B.weight.any()
    assert not m.values.any()
    assert m.scaling == 2.0
    x = torch.randn(3, 400)
    assert torch.equal(m(x), m.base_layer(x))


def positions(model: nn.Module) -> list[set[tuple[int, int]]]:
    layers = [m for m in model.modules() if isinstance(m, DSEELinear)]
    return [set(zip(m.rows.tolist(), m.cols.tolist(), strict=True)) for m in layers]


def attached(W: Tensor, seed: int = 0, **fields: Any) -> nn.Module:
    base = nn.Sequential(nn.Linear(W.shape[1], W.shape[0]))
    base[0].weight.data = W.clone()
    return attach(base, DSEE(rank=5, nonzeros=12, targets=("0",), **fields), seed=seed)


def test_where_the_single_weights_are() -> None:
    """By the split: where the planted ones are, whatever the seed. By size: the largest. Drawn: by the seed alone."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(60, 5, generator=g) @ torch.randn(5, 50, generator=g)
    where = torch.randperm(3000, generator=g)[:12]
    W.view(-1)[where] += 5.0
    planted = {(int(i) // 50, int(i) % 50) for i in where}
    for seed in (0, 1):
        assert positions(attached(W, seed)) == [planted]
    by_size = W.abs().flatten().argsort(descending=True)[:12]
    assert positions(attached(W, support="magnitude")) == [{(int(i) // 50, int(i) % 50) for i in by_size}]
    first, again, other = (positions(attached(W, seed, support="random")) for seed in (0, 0, 1))
    assert first == again != other
    assert all(len(found) == 12 for found in (*first, *other))


@pytest.mark.parametrize("support", ["decompose", "magnitude", "random"])
@pytest.mark.parametrize("family", ["gpt2", "modernbert"])
def test_a_fused_projection_is_adapted_in_its_query_and_value(
    family: str, support: Any, tiny_encoder: Callable[..., Any]
) -> None:
    """N single weights in either, none among the keys, whose rows do not change."""
    model = attach(tiny_encoder(family), DSEE(rank=2, nonzeros=5, support=support))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p) * p.requires_grad
    for m in (m for m in model.modules() if isinstance(m, DSEELinear)):
        assert torch.bincount(m.rows // 16).tolist() == [5, 0, 5]
        assert len({*zip(m.rows.tolist(), m.cols.tolist(), strict=True)}) == 10
        query, key, value = m.change().split(16)
        assert not key.any()
        assert query.any()
        assert value.any()


def test_positions_come_from_the_file(tiny_encoder: Callable[..., Any]) -> None:
    """Drawn anew by another seed, they are the stored ones after loading."""
    method = DSEE(rank=2, nonzeros=5, support="random")
    model, other = (attach(tiny_encoder("bert"), method, seed=seed) for seed in (0, 1))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p) * p.requires_grad
    assert positions(model) != positions(other)
    restore(other, method, adapter_tensors(model, method))
    assert positions(model) == positions(other)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(model(ids).last_hidden_state, other(ids).last_hidden_state)


@pytest.mark.parametrize(("name", "value"), [("rows", 16), ("rows", -1), ("cols", 16), ("cols", -1)])
def test_a_stored_place_outside_of_the_layer_is_refused(
    name: str, value: int, tiny_encoder: Callable[..., Any]
) -> None:
    method = DSEE(rank=2, nonzeros=5)
    model = attach(tiny_encoder("bert"), method)
    stored = adapter_tensors(model, method)
    stored[next(key for key in stored if key.endswith("." + name))][2] = value
    with pytest.raises(InputError, match=f"{name} names a place outside"):
        restore(model, method, stored)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no single weights": ({"nonzeros": 0}, "method.nonzeros=0"),
    "true": ({"nonzeros": True}, "method.nonzeros=True"),
    "too many": ({"nonzeros": 17}, r"method.nonzeros=17 to be at most 16.*encoder.layer.0.attention.self.query"),
    "rank 0": ({"rank": 0}, "method.rank=0"),
    "alpha 0": ({"alpha": 0.0}, "method.alpha=0"),
    "support": ({"support": "snip"}, "method.support='snip' to be one of decompose, magnitude, random"),
    "target": ({"targets": ("quarry",)}, "quarry"),
}


@pytest.mark.parametrize(("fields", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_model_unchanged(fields: dict[str, Any], words: str, tiny_encoder: Callable[..., Any]) -> None:
    model = tiny_encoder("bert")
    modules = list(model.modules())
    with pytest.raises(InputError, match=words):
        attach(model, DSEE(**{"rank": 2, "nonzeros": 5, "pruned": True, **fields}))
    assert list(model.modules()) == modules


def test_bits() -> None:
    """As numpy packs them, of any length."""
    import numpy as np

    for shape in ((3,), (8,), (5, 7), (4, 16)):
        mask = torch.rand(shape) > 0.5
        assert packed(mask).numpy().tolist() == np.packbits(mask.numpy()).tolist()
        assert torch.equal(unpacked(packed(mask), mask.shape), mask)


@EACH_BASE
def test_a_pruned_layer_computes_with_what_is_kept(make: Callable[[], nn.Module]) -> None:
    """And leaves the layer underneath as it was, until it is merged."""
    m = Pruned(make())
    before = m.weight.detach().clone()
    x = torch.randn(3, 4, 9 if before.shape == (9, 9) else 7)
    assert torch.equal(m(x), m.base_layer(x))
    mask = torch.rand(before.shape) > 0.5
    m.keep(mask)
    with torch.no_grad():
        expected = x @ (before * mask if isinstance(m.base_layer, nn.Linear) else (before * mask).T).T
    torch.testing.assert_close(m(x), expected if m.bias is None else expected + m.bias)
    assert torch.equal(m.weight, before)
    merged: Any = m.merged()
    assert torch.equal(merged.weight, before * mask)
    torch.testing.assert_close(merged(x), m(x))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft of transformers
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_masks_are_saved_and_loaded_and_merged(family: str, task: Callable[..., Any], tmp_path: Path) -> None:
    """By dpft and by peft; switched off in peft, the pretrained model is there again."""
    t, method = task(family), DSEE(rank=2, nonzeros=5, pruned=True)
    start = t.logits()
    attach(t.model, method)
    g = torch.Generator().manual_seed(4)
    for p in t.model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g) * p.requires_grad
    for m in (m for m in t.model.modules() if isinstance(m, Pruned)):
        m.keep(torch.rand(m.weight.shape, generator=g) > 0.4)
    after = t.logits()
    dpft.save_adapter(t.model, method, tmp_path, base="tiny")

    other = task(family)
    attach(other.model, method)
    assert not torch.allclose(other.logits(), after)
    restore(other.model, method, adapter_tensors(t.model, method))
    assert torch.equal(other.logits(), after)

    fresh = task(family)
    loaded: Any = PeftModel.from_pretrained(fresh.model, tmp_path)
    found = type(t)(loaded.double(), t.batch, t.loss, t.heads)
    torch.testing.assert_close(found.logits(), after, rtol=1e-9, atol=1e-9)
    with loaded.disable_adapter():
        torch.testing.assert_close(found.logits(), start, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.logits(), after, rtol=1e-9, atol=1e-9)

    merge(t.model)
    assert not any(isinstance(m, Pruned | DSEELinear) for m in t.model.modules())
    torch.testing.assert_close(t.logits(), after, rtol=1e-9, atol=1e-9)

"""A sparse backbone keeps its zeros: in private training, saved and loaded, merged, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import dpft
from dpft.engine.collect import collect
from dpft.engine.preflight import preflight
from dpft.errors import InputError
from dpft.interop.peft_format import adapter_tensors, restore
from dpft.peft import attach, merge
from dpft.peft.families import FAMILIES, is_linear
from dpft.peft.inject import linears
from dpft.peft.lora import LockedLoRALinear
from dpft.peft.method import Method
from dpft.peft.pattern import SparseLinear, is_sparse, lost_by_merging
from dpft.per_sample import per_example_gradients
from dpft.per_sample.batches import take

ALL = ("all-linear",)
LOCKED: dict[str, Method] = {
    "full": dpft.Full(targets=ALL),
    "last-k": dpft.LastLayers(k=1),
    "lora": dpft.LoRA(rank=2, alpha=3.0, pattern="lock"),
}
OTHERS: dict[str, Method] = {
    "lora fused": dpft.LoRA(rank=2, targets=ALL, fuse_qkv=True, pattern="lock"),
    "lora ffa": dpft.LoRA(rank=2, freeze_a=True, pattern="lock"),
    "whole model": dpft.Full(),
}
CELLS = [pytest.param(m, f, id=f"{name}-{f}") for name, m in LOCKED.items() for f in FAMILIES]
CELLS += [pytest.param(m, f, id=f"{name}-{f}") for name, m in OTHERS.items() for f in ("bert", "gpt2")]
CELLS += [pytest.param(dpft.LoRA(rank=2, targets=("c_attn:q", "c_attn:v"), pattern="lock"), "gpt2", id="lora parts")]
BESIDE: dict[str, Method] = {  # the sparse layers stay frozen
    "adapter": dpft.Adapter(bottleneck=4),
    "prompt": dpft.PromptTuning(length=3),
    "lst": dpft.Ladder(reduction=2),
    "raft": dpft.RAFT(),
    "sparse-adapter": dpft.SparseAdapter(bottleneck=4, density=0.5),
}
FROZEN = [pytest.param(m, f, id=f"{name}-{f}") for name, m in BESIDE.items() for f in ("bert", "gpt2")]
MERGING: list[Method] = [dpft.LoRA(rank=2), dpft.DSEE(rank=2, nonzeros=4), dpft.Full(), dpft.IA3(), dpft.BitFit()]


def prune(model: nn.Module) -> None:
    """Half of each block Linear's entries, the smallest, become zero."""
    for _, module in linears(model, ALL):
        weight = module.get_parameter("weight").data
        weight[weight.abs() <= weight.abs().median()] = 0.0


def zeros(model: nn.Module) -> dict[str, Tensor]:
    """Where each block Linear is zero, by its name in the plain model; also under wrappers."""
    plain = {name.replace(".base_layer", ""): m for name, m in model.named_modules() if is_linear(m)}
    return {name: m.get_parameter("weight") == 0 for name, m in plain.items() if is_sparse(m)}


@pytest.fixture
def sparse(task: Callable[..., Any]) -> Callable[..., Any]:
    def make(family: str, method: Method | None = None) -> Any:
        t = task(family)
        prune(t.model)
        if method is not None:
            attach(t.model, method, train=t.heads)
        return t

    return make


def away_from_zero(model: nn.Module) -> None:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=g).to(p))


def private_steps(t: Any, ledger: Path, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    examples = [take(t.batch, slice(i, i + 1)) for i in range(4)]
    plan = dpft.plan(noise_multiplier=1.0, delta=1e-5, sample_rate=0.5, expected_batch=2, steps=steps, clip=1.0)

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}

    with dpft.PrivateEngine(t.model, optimizer, plan, loss=t.loss, ledger=ledger) as engine:
        engine.preflight(t.batch)
        for batch in engine.batches(examples, collate, length=lambda _: 6):
            engine.step(batch)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def freeze_unused(t: Any) -> None:
    """A mask token that the tiny task never reads."""
    with torch.enable_grad():
        found = torch.autograd.grad(t.loss(t.model, t.batch).sum(), trained(t.model), allow_unused=True)
    for p, g in zip(trained(t.model), found, strict=True):
        p.requires_grad_(g is not None)


@pytest.mark.parametrize(("method", "family"), CELLS + FROZEN)
def test_gradients_equal_the_oracle(
    method: Method, family: str, sparse: Callable[..., Any], same_form: Callable[..., None]
) -> None:
    """A6: as for every method; where the zeros are locked, the loss is a function of the entries that train alone."""
    t = sparse(family, method)
    freeze_unused(t)
    away_from_zero(t.model)
    uses = preflight(t.model, t.loss, t.batch)
    assert not uses.alone
    for batch in (t.batch, take(t.batch, slice(1, 2))):
        grads, _ = collect(t.model, t.loss, batch, expected=len(batch["labels"]), uses=uses)
        truth = per_example_gradients(t.model, t.loss, batch)
        scale = torch.stack([g.norm() for g in truth.values()]).norm()
        for name, g in truth.items():
            if g.norm() > 1e-12 * scale:
                same_form(grads[name], g)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("method", "family"), CELLS)
def test_zeros_stay_zero_from_the_first_step_to_the_merged_model(
    method: Method, family: str, sparse: Callable[..., Any], tmp_path: Path
) -> None:
    """AdamW with weight decay under noise; saved, loaded by peft, merged: the same zeros, the same logits."""
    pattern, start = zeros(sparse(family).model), sparse(family).logits()
    t = sparse(family, method)
    freeze_unused(t)
    assert torch.equal(t.logits(), start)
    optimizer = torch.optim.AdamW(trained(t.model), lr=0.05, weight_decay=0.3)
    private_steps(t, tmp_path / "ledger.jsonl", optimizer)
    after = t.logits()
    assert (after - start).abs().max() > 1e-4
    dpft.save_adapter(t.model, method, tmp_path / "adapter", base="tiny", train=t.heads)
    loaded = PeftModel.from_pretrained(sparse(family).model, tmp_path / "adapter").double()
    torch.testing.assert_close(replace(t, model=loaded).logits(), after, rtol=1e-9, atol=1e-9)
    assert lost_by_merging(t.model) == {}
    fresh = sparse(family).model.named_modules()
    before = {name: m.get_parameter("weight").clone() for name, m in fresh if name in pattern}
    merge(t.model)
    torch.testing.assert_close(t.logits(), after, rtol=1e-9, atol=1e-9)
    found = zeros(t.model)
    assert found.keys() == pattern.keys()
    assert all(torch.equal(found[name], mask) for name, mask in pattern.items())
    now = {name: t.model.get_submodule(name).get_parameter("weight") for name in pattern}
    assert any(not torch.equal(now[name], before[name]) for name in pattern)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("method", "family"), FROZEN)
def test_what_trains_beside_a_sparse_model_leaves_it_as_it_is(
    method: Method, family: str, sparse: Callable[..., Any], tmp_path: Path
) -> None:
    """To the bit, under noise and weight decay; saved and put onto the sparse model again, it computes the same."""
    t = sparse(family, method)
    assert not any(isinstance(m, SparseLinear) for m in t.model.modules())
    freeze_unused(t)
    before = {name: p.clone() for name, p in t.model.named_parameters()}
    private_steps(t, tmp_path / "ledger.jsonl", torch.optim.AdamW(trained(t.model), lr=0.05, weight_decay=0.3), 2)
    for name, p in t.model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
    assert sum(int((p == 0).sum()) for p in t.model.parameters() if not p.requires_grad) > 1000
    dpft.save_adapter(t.model, method, tmp_path / "adapter", base="tiny", train=t.heads)
    loaded = PeftModel.from_pretrained(sparse(family).model, tmp_path / "adapter").double()
    torch.testing.assert_close(replace(t, model=loaded).logits(), t.logits(), rtol=1e-9, atol=1e-9)


def test_only_the_entries_that_move_are_counted(sparse: Callable[..., Any]) -> None:
    t = sparse("bert", dpft.Full(targets=ALL, biases=False))
    pattern = zeros(t.model)
    heads = sum(p.numel() for name in t.heads for p in t.model.get_submodule(name).parameters())
    assert len(pattern) == 12
    assert sum(p.numel() for p in trained(t.model)) == sum(int((~m).sum()) for m in pattern.values()) + heads


def test_ignored_the_zeros_train(sparse: Callable[..., Any], tmp_path: Path) -> None:
    """The test above can fail: without the lock noise fills the zeros."""
    t = sparse("bert", dpft.Full(targets=ALL, pattern="ignore"))
    assert not any(isinstance(m, SparseLinear) for m in t.model.modules())
    private_steps(t, tmp_path / "ledger.jsonl", torch.optim.SGD(trained(t.model), lr=0.1), 1)
    assert zeros(t.model) == {}


def test_dense_models_and_heads_at_zero_have_no_pattern(task: Callable[..., Any]) -> None:
    t = task("bert")
    nn.init.zeros_(t.model.classifier.weight)
    attach(t.model, dpft.Full(), train=t.heads)
    assert not any(isinstance(m, SparseLinear) for m in t.model.modules())
    layer = nn.Linear(10, 10)
    layer.weight.data[0, :4] = 0.0
    assert not is_sparse(layer)
    layer.weight.data[0, :5] = 0.0
    assert is_sparse(layer)


@pytest.mark.parametrize("method", MERGING, ids=lambda m: m.name)
def test_merging_never_fills_zeros_in_silence(method: Method, sparse: Callable[..., Any]) -> None:
    """Either nothing is lost, or it is refused by a sentence that names both ways, and the model stays as it was."""
    t = sparse("bert", method)
    freeze_unused(t)
    away_from_zero(t.model)
    after, modules = t.logits(), [type(m) for m in t.model.modules()]
    state = {name: value.clone() for name, value in t.model.state_dict().items()}
    lost = lost_by_merging(t.model)
    if method.name not in ("lora", "dsee"):
        assert lost == {}
        merge(t.model)
        torch.testing.assert_close(t.logits(), after, rtol=1e-9, atol=1e-9)
        return
    with pytest.raises(InputError, match=r'pattern = "lock".*--keep-pattern'):
        merge(t.model)
    assert [type(m) for m in t.model.modules()] == modules
    assert all(torch.equal(value, state[name]) for name, value in t.model.state_dict().items())
    assert torch.equal(t.logits(), after)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("method", [dpft.LoRA(rank=2), dpft.DSEE(rank=2, nonzeros=4)], ids=lambda m: m.name)
def test_kept_pattern_is_what_falls_on_the_mask(
    method: Method, family: str, sparse: Callable[..., Any], task: Callable[..., Any]
) -> None:
    """W + M * change, and the loss that was foretold."""
    pattern = zeros(sparse(family).model)
    t = sparse(family, method)
    away_from_zero(t.model)
    whole = {name: (m.base_layer.weight + turned(m)).detach() for name, m in wrapped(t.model).items()}
    lost = lost_by_merging(t.model)
    assert lost.keys() == whole.keys()
    merge(t.model, keep_pattern=True)
    for name, folded in whole.items():
        weight = t.model.get_submodule(name).get_parameter("weight")
        torch.testing.assert_close(weight, folded.masked_fill(pattern[name], 0.0), rtol=1e-12, atol=1e-12)
        assert lost[name] == pytest.approx(float((folded - weight).norm() / folded.norm()))
    assert all(torch.equal(zeros(t.model)[name], mask) for name, mask in pattern.items())


def wrapped(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if hasattr(m, "lora_A")}


def turned(layer: Any) -> Tensor:
    change = layer.scaling * layer.change()
    return change if isinstance(layer.base_layer, nn.Linear) else change.T


def test_a_locked_pair_is_the_product_under_the_mask(sparse: Callable[..., Any]) -> None:
    """An oracle by hand: x (W + s M * (B A))^T + b."""
    t = sparse("bert", LOCKED["lora"])
    away_from_zero(t.model)
    layer = next(m for m in t.model.modules() if isinstance(m, LockedLoRALinear))
    W, bias, x = layer.base_layer.weight, layer.base_layer.bias, torch.randn(3, 5, 16, dtype=torch.float64)
    product = layer.lora_B.weight @ layer.lora_A.weight
    expected = torch.einsum("bti,oi->bto", x, torch.where(W != 0, W + 1.5 * product, 0.0)) + bias
    torch.testing.assert_close(layer(x), expected)


def test_values_go_to_no_other_pattern(sparse: Callable[..., Any], task: Callable[..., Any]) -> None:
    """As many entries in other places: refused, though every shape fits."""
    method = dpft.Full(targets=ALL)
    t = sparse("bert", method)
    stored = adapter_tensors(t.model, method)
    other = task("bert")
    prune(other.model)
    weight = linears(other.model, ALL)[0][1].get_parameter("weight").data
    weight.copy_(weight.flip(0))
    attach(other.model, method)
    with pytest.raises(InputError, match="zeros elsewhere"):
        restore(other.model, method, {n: t for n, t in stored.items() if "classifier" not in n})


def test_a_sparse_weight_that_is_tied_is_refused(sparse: Callable[..., Any]) -> None:
    t = sparse("bert")
    one, other = (m for _, m in linears(t.model, ALL)[:2])
    other.weight = one.weight
    modules = [type(m) for m in t.model.modules()]
    with pytest.raises(InputError, match=r'method\.pattern = "ignore"'):
        attach(t.model, dpft.Full())
    assert [type(m) for m in t.model.modules()] == modules


@pytest.mark.parametrize("method", [dpft.Full, dpft.LastLayers, dpft.LoRA])
def test_other_settings_are_refused(method: Any) -> None:
    with pytest.raises(InputError, match=r"method\.pattern='maybe'"):
        method(pattern="maybe")

"""The support matrix: every cell (method x family) against the one-example oracle.

A cell is proven by: the exact set and number of what trains (test_trained.py); identity at the start where the method
promises it; every per-example gradient, its norm and the weighted sums equal to plain autograd on one example (1e-9,
float64); a private step moves all that trains and nothing else; saved, loaded by HF peft, and merged it computes the
same; bfloat16 stays close.
"""

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
from dpft.models.held import hold_frozen
from dpft.models.recompute import recompute
from dpft.peft import attach, merge
from dpft.peft.method import Method
from dpft.peft.registry import METHODS, cells, method_from
from dpft.per_sample import per_example_gradients
from dpft.per_sample.batches import examples_in, take
from dpft.per_sample.oracle import sq_norms

# Small sizes; what a method does not name stays at its default. Variants are further cells.
SECTIONS: dict[str, dict[str, Any]] = {
    "dsee": {"rank": 3, "alpha": 5.0, "nonzeros": 5},
    "lora": {"rank": 3, "alpha": 5.0},
    "adapter": {"bottleneck": 4},
    "sparse-adapter": {"bottleneck": 4},
    "compacter": {"bottleneck": 4, "n": 2},
    "tokens": {"tokens": (3, 5, 7)},
    "prompt": {"length": 3},
    "prefix": {"length": 3},
    "lst": {"reduction": 2},
    "attempt": {"count": 2, "length": 3, "width": 4, "temperature": 2.0, "train_norm": True},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "dsee pruned": {"name": "dsee", "rank": 2, "nonzeros": 5, "targets": ("all-linear",), "pruned": True},
    "lora all-linear fused": {"name": "lora", "rank": 2, "targets": ("all-linear",), "fuse_qkv": True},
    "lora ffa": {"name": "lora", "rank": 2, "freeze_a": True},
    "lora rslora": {"name": "lora", "rank": 2, "alpha": 3.0, "rslora": True},
    "adapter pfeiffer": {"name": "adapter", "bottleneck": 4, "placement": "ffn", "norms": True},
    "adapter yu": {"name": "adapter", "bottleneck": 4, "bias": False, "before_dropout": True},
    "sparse-adapter he": {
        "name": "sparse-adapter",
        "bottleneck": 4,
        "density": 0.3,
        "mask": "magnitude",
        "input_norm": True,
        "activation": "relu",
    },
    "sparse-adapter synflow": {"name": "sparse-adapter", "reduction": 4, "density": 0.2, "mask": "synflow"},
    "lst published": {"name": "lst", "reduction": 2, "start": "published"},
    "lst random keep": {"name": "lst", "reduction": 2, "init": "random", "keep": (1,)},
    "compacter yu": {"name": "compacter", "bottleneck": 4, "n": 2, "shared_rule": False, "bias": False, "init": "yu"},
    "raft smooth": {"name": "raft", "version": "smooth", "tails": "rational", "scaling": "none"},
    "raft beside norms": {"name": "together", "methods": ({"name": "raft"}, {"name": "norms"})},
    "raft beside lora": {"name": "together", "methods": ({"name": "raft"}, {"name": "lora", "rank": 2})},
    "compacter++": {"name": "compacter", "bottleneck": 4, "n": 2, "placement": "ffn", "norms": True},
}
POOLED = ("head", "tokens")  # of a language model: what is tied to its embedding is no head, nor are its rows apart
CELLS = [pytest.param(c.method, c.family, id=f"{c.method}-{c.family}") for c in cells() if c.supported]
REFUSED = [pytest.param(c.method, c.family, c.reason, id=f"{c.method}-{c.family}") for c in cells() if not c.supported]
# The reason that the matrix shows -> what the error says.
WHY = {
    "its layers have no biases": "trains biases, and this .* model has none",
    "its input is not token ids": "goes through a plain embedding table|no embeddings of tokens",
    "its attention takes no keys and values but its own": "whose attention takes further keys and values",
}
FAMILIES = sorted({c.family for c in cells()})
# Variants on one family of each make: apart, fused and transposed, two stacks, images.
MATRIX = CELLS + [
    pytest.param(variant, family, id=f"{variant}-{family}")
    for variant in VARIANTS
    for family in ("bert", "gpt2", "t5", "vit")
]


def method(name: str) -> Method:
    return method_from(VARIANTS.get(name) or {"name": name, **SECTIONS.get(name, {})})


def away_from_zero(model: nn.Module) -> None:
    """A factor that starts at zero hides the gradients of the factors before it."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=g).to(p))


def freeze_unused(t: Any) -> None:
    """Parts that the tiny task never runs (a mask token): frozen, as a user must who trains in full."""
    with torch.enable_grad():
        trained = {n: p for n, p in t.model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(t.loss(t.model, t.batch).sum(), list(trained.values()), allow_unused=True)
    for (name, p), g in zip(trained.items(), found, strict=True):
        if g is None:
            assert "mask_token" in name, name
            p.requires_grad_(False)


@pytest.fixture
def attached(task: Callable[..., Any]) -> Callable[..., Any]:
    def make(name: str, family: str, attention: str = "eager") -> tuple[Any, Method]:
        t, m = task(family, attention, pooled=name in POOLED), method(name)
        attach(t.model, m, train=t.heads)
        freeze_unused(t)
        return t, m

    return make


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("name", "family"), MATRIX)
def test_gradients_equal_the_oracle(
    name: str, family: str, attached: Callable[..., Any], same_form: Callable[..., None]
) -> None:
    """A5, A6, G1: padded, unpadded where the mask is left out, and a batch of one."""
    t, _ = attached(name, family)
    away_from_zero(t.model)
    uses = preflight(t.model, t.loss, t.batch)
    assert not uses.alone
    batches = [t.batch, take(t.batch, slice(1, 2))]
    if "attention_mask" in t.batch:  # transformers takes other paths where nothing is padded
        batches.append({**t.batch, "attention_mask": torch.ones_like(t.batch["attention_mask"])})
    for batch in batches:
        grads, _ = collect(t.model, t.loss, batch, expected=len(batch["labels"]), uses=uses)
        truth = per_example_gradients(t.model, t.loss, batch)
        assert set(grads) == set(truth) == trained_names(t.model)
        scale = sq_norms(truth).sum().sqrt()
        for parameter, g in truth.items():
            if g.norm() > 1e-12 * scale:  # a key's bias has gradient zero in exact arithmetic
                same_form(grads[parameter], g)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft of transformers
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # peft, of every norm but in training
@pytest.mark.parametrize(("name", "family"), MATRIX)
def test_start_step_and_end(
    name: str, family: str, attached: Callable[..., Any], task: Callable[..., Any], tmp_path: Path
) -> None:
    """A11: identity at the start; one private step moves what trains and nothing else; saved, and loaded by peft on a
    fresh base, it computes the same, and so it does merged."""
    before = task(family, pooled=name in POOLED).logits()
    t, m = attached(name, family)
    if m.identity:
        assert torch.equal(t.logits(), before)
    still = {n: p.detach().clone() for n, p in t.model.state_dict().items()}
    trained = trained_names(t.model)
    _one_private_step(t, tmp_path / "ledger.jsonl")
    shared = {n for n, p in t.model.named_parameters(remove_duplicate=False) if p.requires_grad}
    moved = {n for n, p in t.model.state_dict().items() if not torch.equal(p, still[n])}
    assert trained <= moved <= shared
    after = t.logits()
    dpft.save_adapter(t.model, m, tmp_path / "adapter", base="tiny", train=t.heads)
    loaded = PeftModel.from_pretrained(task(family, pooled=name in POOLED).model, tmp_path / "adapter")
    torch.testing.assert_close(replace(t, model=loaded.double()).logits(), after, rtol=1e-9, atol=1e-9)
    if m.merges:
        merge(t.model)
        torch.testing.assert_close(t.logits(), after, rtol=1e-9, atol=1e-9)
        assert not any("lora" in n or "ia3" in n for n, _ in t.model.named_parameters())


def _one_private_step(t: Any, ledger: Path) -> None:
    examples = [take(t.batch, slice(i, i + 1)) for i in range(4)]
    plan = dpft.plan(noise_multiplier=1.0, delta=1e-5, sample_rate=0.5, expected_batch=2, steps=1, clip=1.0)
    optimizer = torch.optim.SGD([p for p in t.model.parameters() if p.requires_grad], lr=0.1)

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}

    with dpft.PrivateEngine(t.model, optimizer, plan, loss=t.loss, ledger=ledger) as engine:
        engine.preflight(t.batch)
        for batch in engine.batches(examples, collate, length=lambda _: 6):
            engine.step(batch)


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_bfloat16_stays_close(name: str, family: str, attached: Callable[..., Any]) -> None:
    """E1: products in bfloat16, norms and sums not: within what 8 bits of mantissa allow of the float32 truth.

    One rounding is 2^-9; some twenty of them follow one another, and a ReLU may flip: 0.2 of each parameter's gradient
    (the worst seen is 0.12), where a use that is missed or counted twice is off by far more. With the frozen matrices
    held in bfloat16 all is the same, bit for bit."""
    t, _ = attached(name, family)
    t.model.float()
    batch = {k: v.float() if v.is_floating_point() else v for k, v in t.batch.items()}
    away_from_zero(t.model)
    uses = preflight(t.model, t.loss, batch, torch.bfloat16)
    grads, losses = collect(t.model, t.loss, batch, expected=4, uses=uses, compute=torch.bfloat16)
    truth = per_example_gradients(t.model, t.loss, batch)
    overall = float(sq_norms(truth).sum().sqrt())
    for n, g in truth.items():  # parameter by parameter; the smallest on a hundredth of the whole's scale
        error = float((grads[n].dense().double() - g.double()).norm())
        assert error <= 0.2 * (float(g.double().norm()) + 0.01 * overall), n
    each = {n: torch.stack([grads[n].weighted_sum(row) for row in torch.eye(4)]) for n in grads}
    sq = torch.stack([grads[n].sq_norm() for n in grads]).sum(0)
    torch.testing.assert_close(sq, sq_norms(each), rtol=1e-4, atol=0)  # the norm is that of what is summed
    assert losses.dtype == torch.float32
    hold_frozen(t.model, torch.bfloat16)  # rounded once in place of at every use
    torch.testing.assert_close(t.loss(t.model, batch), losses, rtol=0.1, atol=0.1)  # as the preflight runs it
    held, again = collect(t.model, t.loss, batch, expected=4, uses=uses, compute=torch.bfloat16)
    assert torch.equal(again, losses)
    assert all(torch.equal(held[n].dense(), grads[n].dense()) for n in grads)


@pytest.mark.parametrize(("name", "family", "reason"), REFUSED)
def test_unsupported_cell_is_refused_before_anything_changes(
    name: str, family: str, reason: str, task: Callable[..., Any]
) -> None:
    t = task(family, pooled=name in POOLED)
    modules = [type(m) for m in t.model.modules()]
    with pytest.raises(InputError, match=WHY[reason]):
        attach(t.model, method(name), train=t.heads)
    assert [type(m) for m in t.model.modules()] == modules


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "vit"])
def test_fused_attention_gives_the_same_gradients(family: str, attached: Callable[..., Any]) -> None:
    t, _ = attached("lora", family, "sdpa")
    away_from_zero(t.model)
    preflight(t.model, t.loss, t.batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_the_family_keeps_examples_apart(family: str, attached: Callable[..., Any]) -> None:
    """A7, A8: in training mode the preflight compares neighbours under equal draws."""
    t, _ = attached("lora", family)
    preflight(t.model.train(), t.loss, t.batch)


@pytest.mark.parametrize(("name", "family"), MATRIX)
def test_only_the_models_own_matrices_are_held(name: str, family: str, task: Callable[..., Any]) -> None:
    """What a method brought is released as it is, frozen or not."""
    t, m = task(family, pooled=name in POOLED), method(name)
    t.model.float()
    own = {id(p) for p in t.model.parameters()}
    attach(t.model, m, train=t.heads)
    hold_frozen(t.model, torch.bfloat16)
    held = [p for p in t.model.parameters() if p.dtype == torch.bfloat16]
    assert held or name in ("full", "bitfit", "dsee pruned")  # everything trains; every bias; every weight has a mask
    assert all(id(p) in own and not p.requires_grad for p in held)


@pytest.mark.parametrize(("name", "family"), [cell for cell in CELLS if cell.values[0] in ("lora", "prompt", "norms")])
def test_the_preflight_proves_held_matrices_too(name: str, family: str, attached: Callable[..., Any]) -> None:
    """A5: it learns in a forward pass which tensors hold examples, in float32 as well, where matrices are widened."""
    t, _ = attached(name, family)
    t.model.float()
    hold_frozen(t.model, torch.bfloat16)
    assert any(p.dtype == torch.bfloat16 for p in t.model.parameters())
    batch = {k: v.float() if v.is_floating_point() else v for k, v in t.batch.items()}
    assert not preflight(t.model, t.loss, batch, torch.bfloat16).alone


@pytest.mark.parametrize(("name", "family"), [cell for cell in CELLS if cell.values[0] in ("lora", "prefix", "full")])
def test_the_preflight_learns_under_activation_checkpointing(
    name: str, family: str, attached: Callable[..., Any]
) -> None:
    """A7: in eval mode too, in which it proves gradients and in which a run trains; what it learns holds there."""
    t, _ = attached(name, family)
    if family == "mpnet":
        pytest.skip("transformers has no activation checkpointing for it")
    recompute(t.model)
    t.model.eval()
    uses = preflight(t.model, t.loss, t.batch)
    assert not uses.alone
    truth = per_example_gradients(t.model, t.loss, t.batch)
    found, _ = collect(t.model, t.loss, t.batch, expected=examples_in(t.batch), uses=uses)
    for key, form in found.items():
        torch.testing.assert_close(form.dense(), truth[key], rtol=1e-6, atol=1e-9)


def test_every_method_has_a_row() -> None:
    assert {c.method for c in cells()} == set(METHODS)

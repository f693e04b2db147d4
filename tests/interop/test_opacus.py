"""Our methods under Opacus: its per-sample gradients and its noiseless step equal ours, or it raises."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dpft.engine.collect import collect
from dpft.engine.preflight import preflight
from dpft.errors import PrivacyError
from dpft.peft import attach
from dpft.peft.registry import method_from
from dpft.per_sample.capture import trainable
from dpft.per_sample.oracle import clipped_sum, per_example_gradients, sq_norms

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 3},
    "lora all-linear": {"name": "lora", "rank": 2, "targets": ("all-linear",)},
    "lora, one A for query, key and value": {"name": "lora", "rank": 2, "targets": ("all-linear",), "fuse_qkv": True},
    "ia3": {"name": "ia3"},
    "bitfit": {"name": "bitfit"},
    "norms": {"name": "norms"},
    "last-k": {"name": "last-k"},
    "full": {"name": "full"},
    "tokens": {"name": "tokens", "tokens": (3, 5, 7)},
    "head": {"name": "head"},
    "adapter": {"name": "adapter", "bottleneck": 4},
    "adapter with norms": {"name": "adapter", "bottleneck": 4, "norms": True},
    "compacter": {"name": "compacter", "bottleneck": 4, "n": 2},
    "compacter, own rules": {"name": "compacter", "bottleneck": 4, "n": 2, "shared_rule": False, "init": "yu"},
}
FAMILIES = ("bert", "deberta-v2", "gpt2", "llama", "t5", "vit")
WITHOUT = {("bitfit", "llama"), ("bitfit", "t5"), ("tokens", "vit")}  # what the method itself refuses on the family
POOLED = ("head", "tokens")  # of a language model: its own head is tied to the embedding
# Called on tables that all examples share, where Opacus alone would say nothing.
SHARED = {
    ("full", "bert"): "position_embeddings",
    ("full", "gpt2"): "wpe",
    ("full", "t5"): "relative_attention_bias",
    ("lora", "deberta-v2"): "query_proj.lora_A",
    ("lora all-linear", "deberta-v2"): "query_proj.lora_A",
    ("lora, one A for query, key and value", "deberta-v2"): "query_proj.lora_A",
    ("ia3", "deberta-v2"): "key_proj",
    ("bitfit", "deberta-v2"): "LayerNorm",
    ("norms", "deberta-v2"): "LayerNorm",
    ("last-k", "deberta-v2"): "query_proj",
    ("full", "deberta-v2"): "LayerNorm",
    ("adapter with norms", "deberta-v2"): "LayerNorm",
}
TABLES = ("position_embeddings", "wpe", "relative_attention_bias")  # after whose freezing the rest is right
CELLS = [
    (name, family)
    for name in METHODS
    for family in FAMILIES
    if (name, family) not in WITHOUT and SHARED.get((name, family), TABLES[0]) in TABLES
]
# Parameters outside of a module's own call, or beside buffers.
RAISE: dict[str, dict[str, Any]] = {
    "prompt": {"name": "prompt", "length": 3},
    "prefix": {"name": "prefix", "length": 3},
    "lst": {"name": "lst", "reduction": 2},
    "attempt": {"name": "attempt", "count": 2, "length": 3, "width": 4},
    "dsee": {"name": "dsee", "rank": 2, "nonzeros": 5},
    "sparse-adapter": {"name": "sparse-adapter", "bottleneck": 4},
    "raft": {"name": "raft"},
}

pytestmark = [
    # Its remark on every first layer: token ids carry no gradient.
    pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients:UserWarning"),
]


def _conftest() -> Any:
    """The tiny models with a task of tests/peft."""
    spec = importlib.util.spec_from_file_location("peft_conftest", Path(__file__).parents[1] / "peft" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


task = _conftest().task


@pytest.fixture
def ready(task: Callable[..., Any]) -> Callable[[str, str], Any]:
    """A task whose model carries the method, away from its start, in train mode without dropout."""
    import dpft.interop.opacus  # noqa: F401

    def make(name: str, family: str) -> Any:
        t = task(family, pooled=name in POOLED)
        attach(t.model, method_from({**METHODS, **RAISE}[name]), train=t.heads)
        g = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in trainable(t.model).values():
                p.add_(0.1 * torch.randn(p.shape, generator=g).to(p))
        for module in t.model.train().modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):  # T5's attention
                module.dropout = 0.0
        return t

    return make


def wrapped(model: nn.Module, **options: Any) -> Any:
    from opacus import GradSampleModule

    return GradSampleModule(model, loss_reduction="mean", **options)


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_gradients_and_step_equal_ours(
    name: str, family: str, ready: Callable[[str, str], Any], close: Callable[..., None]
) -> None:
    from dpft.interop.opacus import check

    t = ready(name, family)
    _freeze_tables(t.model)
    check(t.model, t.loss, t.batch)
    uses = preflight(t.model, t.loss, t.batch)
    grads, _ = collect(t.model, t.loss, t.batch, expected=4, uses=uses)
    ours = {n: grads[n].dense() for n in trainable(t.model)}
    before = {n: p.detach().clone() for n, p in trainable(t.model).items()}
    module = wrapped(t.model)
    t.loss(module, t.batch).mean().backward()
    scale = float(sq_norms(ours).sum().sqrt())
    for n, p in trainable(t.model).items():
        if ours[n].norm() > 1e-12 * scale:  # a key's bias has gradient zero in exact arithmetic
            close(p.grad_sample, ours[n])
    clip = float(sq_norms(ours).sqrt().median())  # cuts some examples and leaves others
    _optimizer(t.model, clip).step()
    for n, total in clipped_sum(ours, clip).items():
        # Opacus adds 1e-6 to every norm that it divides the clip by.
        error = (before[n] - trainable(t.model)[n] - total / 4).norm()
        assert error <= 1e-6 * max(1.0, clip), n


def _optimizer(model: nn.Module, clip: float) -> Any:
    """Opacus' own, without noise."""
    from opacus.optimizers import DPOptimizer

    return DPOptimizer(
        torch.optim.SGD(trainable(model).values(), lr=1.0),
        noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=4, loss_reduction="mean",
    )  # fmt: skip


def _freeze_tables(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if any(table in name for table in TABLES):
            p.requires_grad_(False)


@pytest.mark.parametrize(("name", "family", "module"), [(*cell, module) for cell, module in SHARED.items()])
def test_module_that_runs_on_a_shared_table_raises_at_once(
    name: str, family: str, module: str, ready: Callable[[str, str], Any]
) -> None:
    """A2: in the forward pass, whether or not somebody called check."""
    from dpft.interop.opacus import check

    t = ready(name, family)
    with pytest.raises(PrivacyError, match=f"{module} is called on a leading size"):
        check(t.model, t.loss, t.batch)
    with pytest.raises(PrivacyError, match=f"{module} is called on a leading size"):
        t.loss(wrapped(t.model), t.batch)


def test_opacus_alone_is_silent_there(ready: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the guard is for: without it a step succeeds on gradients that are far off, and check still finds them."""
    from opacus.grad_sample import GradSampleHooks

    from dpft.interop.opacus import check

    t = ready("lora", "deberta-v2")
    monkeypatch.setattr(GradSampleHooks, "add_hooks", GradSampleHooks.add_hooks.__wrapped__)
    truth = per_example_gradients(t.model, t.loss, t.batch)
    module = wrapped(t.model)
    t.loss(module, t.batch).mean().backward()
    _optimizer(t.model, 1.0).step()
    off = {n: float((p.grad_sample - truth[n]).norm() / truth[n].norm()) for n, p in trainable(t.model).items()}
    assert all((error > 0.3) == ("query_proj" in n) for n, error in off.items())
    module.cleanup()
    with pytest.raises(PrivacyError, match=r"query_proj.*differs from the same example's alone"):
        check(t.model, t.loss, t.batch)


def test_table_of_positions_alone_is_no_single_example(
    ready: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained by itself it would give Opacus one gradient for the whole batch, clipped as one."""
    from opacus.grad_sample import GradSampleHooks

    from dpft.interop.opacus import check

    t = ready("full", "bert")
    for n, p in t.model.named_parameters():
        p.requires_grad_("position_embeddings" in n)
    module = wrapped(t.model)
    with pytest.raises(PrivacyError, match="position_embeddings"):
        t.loss(module, t.batch)
    module.cleanup()
    monkeypatch.setattr(GradSampleHooks, "add_hooks", GradSampleHooks.add_hooks.__wrapped__)
    with pytest.raises(PrivacyError, match=r"shape \(4, 16, 16\), found \(1, 16, 16\)"):
        check(t.model, t.loss, t.batch)


@pytest.mark.parametrize("name", ["lora", "compacter", "tokens", *RAISE])
def test_private_training_by_opacus_itself(name: str, ready: Callable[[str, str], Any]) -> None:
    """``make_private`` as its users call it, strict and with Poisson batches: it trains, or raises before a step."""
    t = ready(name, "bert")
    before = {n: p.detach().clone() for n, p in trainable(t.model).items()}
    if name not in RAISE:
        assert _opacus_steps(t) > 0
        assert all(not torch.equal(p, before[n]) for n, p in trainable(t.model).items())
        return
    with pytest.raises((NotImplementedError, ValueError, RuntimeError), match=r"buffers|[Gg]rad|functorch"):
        _opacus_steps(t)
    assert all(torch.equal(p, before[n]) for n, p in trainable(t.model).items())


def _opacus_steps(t: Any) -> int:
    """An epoch over 16 examples, half of them a step."""
    from opacus import PrivacyEngine

    rows = [{key: value[i % 4] for key, value in t.batch.items()} for i in range(16)]
    steps = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its noise is drawn from, and of its accountant's grid
        module, optimizer, loader = PrivacyEngine().make_private(
            module=t.model,
            optimizer=torch.optim.SGD(trainable(t.model).values(), lr=0.1),
            data_loader=torch.utils.data.DataLoader(rows, batch_size=8),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )
        for batch in loader:
            optimizer.zero_grad()
            t.loss(module, batch).mean().backward()
            optimizer.step()
            steps += 1
    return steps


@pytest.mark.parametrize("name", METHODS)
def test_every_layer_of_ours_with_parameters_of_its_own_is_registered(name: str, ready: Callable[..., Any]) -> None:
    from opacus import GradSampleModule

    for module in ready(name, "bert").model.modules():
        if type(module).__module__.startswith("dpft.") and any(True for _ in module.parameters(recurse=False)):
            assert type(module) in GradSampleModule.GRAD_SAMPLERS


def test_module_in_several_places_is_refused() -> None:
    """Opacus says nothing there, and its gradient is twice the true one."""
    from opacus.grad_sample import GradSampleHooks

    import dpft.interop.opacus  # noqa: F401

    linear = nn.Linear(2, 2, bias=False)
    with pytest.raises(PrivacyError, match=r"0 and 1\.0 are one module"):
        wrapped(nn.Sequential(linear, nn.Sequential(linear)))
    wrapped(nn.Sequential(linear, nn.Sequential(linear)).requires_grad_(False))
    linear.requires_grad_(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradSampleHooks, "add_hooks", GradSampleHooks.add_hooks.__wrapped__)
        module = wrapped(nn.Sequential(linear, nn.Sequential(linear)))
    x = torch.randn(3, 2)
    module(x).sum(dim=1).mean().backward()
    once = torch.func.vmap(torch.func.grad(lambda w, x: (w @ (w @ x)).sum()), (None, 0))(linear.weight.detach(), x)
    torch.testing.assert_close(linear.weight.grad_sample, 2 * once)


def test_check_leaves_nothing_behind(ready: Callable[[str, str], Any]) -> None:
    from dpft.interop.opacus import check

    t = ready("ia3", "bert")
    t.model.eval().bert.train()
    before = {n: p.detach().clone() for n, p in t.model.named_parameters()}
    modes = [m.training for m in t.model.modules()]
    check(t.model, t.loss, t.batch)
    assert all(torch.equal(p, before[n]) for n, p in t.model.named_parameters())
    assert [m.training for m in t.model.modules()] == modes
    assert not any(hasattr(p, "grad_sample") or hasattr(p, "_forward_counter") for p in t.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in t.model.modules())
    check(t.model, t.loss, t.batch)  # and Opacus can hook it again


def test_eval_mode_is_no_silent_loss(ready: Callable[..., Any]) -> None:
    t = ready("compacter", "bert")
    module = wrapped(t.model.eval())
    with pytest.raises(ValueError, match="No activations detected"):
        t.loss(module, t.batch).mean().backward()

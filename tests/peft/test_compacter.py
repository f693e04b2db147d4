"""Compacter's own layer: what it computes, how small its gradients are, how it starts, and the one shared rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpft.interop.peft_format import adapter_tensors, restore
from dpft.peft import Compacter, attach
from dpft.peft.phm import PHM, initial_factors, initial_rule
from dpft.per_sample import capture

WIDE = torch.float64


def layer(n: int, inputs: int, outputs: int, *, bias: bool = True) -> PHM:
    g = torch.Generator().manual_seed(1)
    made = (torch.randn(*shape, generator=g, dtype=WIDE) for shape in ((n, n, n), (n, inputs // n), (n, outputs // n)))
    rule, s, t = (nn.Parameter(x) for x in made)
    return PHM(rule, s, t, nn.Parameter(torch.randn(outputs, generator=g, dtype=WIDE)) if bias else None)


def weight(m: PHM) -> Tensor:
    """W [I, O], built."""
    return sum(torch.kron(m.rule[i], torch.outer(m.s[i], m.t[i])) for i in range(m.n))  # type: ignore[return-value]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "inputs", "outputs"), [(1, 5, 3), (2, 4, 6), (4, 12, 8), (4, 8, 4), (10, 20, 10)])
@pytest.mark.parametrize("leading", [(3,), (3, 5), (3, 2, 5), (0, 5), (3, 0)], ids=str)
def test_equals_the_product_with_the_explicit_kronecker_sum(
    leading: tuple[int, ...], n: int, inputs: int, outputs: int, bias: bool
) -> None:
    m = layer(n, inputs, outputs, bias=bias)
    x = torch.randn(*leading, inputs, dtype=WIDE)
    expected = x @ weight(m) + (0 if m.bias is None else m.bias)
    torch.testing.assert_close(m(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8), (3, 2, 2, 8), (1, 8), (0, 8), (0, 5, 8)], ids=str)
@pytest.mark.parametrize("n", [4, 10])
def test_gradients_equal_one_example_at_a_time(shape: tuple[int, ...], n: int, agree: Callable[..., Any]) -> None:
    """A6: and they are dense tensors of the parameters' own small shapes."""
    m = layer(n, 2 * n, 3 * n)
    grads = agree(m, lambda m, x: m(x).sin().flatten(1).sum(dim=1), torch.randn(*shape[:-1], 2 * n, dtype=WIDE))
    assert {name: form.numel for name, form in grads.items()} == {
        name: shape[0] * p.numel() for name, p in m.named_parameters()
    }


@pytest.mark.parametrize("frozen", ["rule", "s", "t", "bias"])
def test_a_frozen_factor_takes_nothing_from_the_others(frozen: str, agree: Callable[..., Any]) -> None:
    m = layer(4, 8, 12)
    getattr(m, frozen).requires_grad_(False)
    grads = agree(m, lambda m, x: m(x).sin().flatten(1).sum(dim=1), torch.randn(3, 5, 8, dtype=WIDE))
    assert set(grads) == {"rule", "s", "t", "bias"} - {frozen}


def test_a_layer_keeps_its_input_and_nothing_else_of_a_tokens_size() -> None:
    m, x = layer(4, 32, 48), torch.randn(3, 50, 32, dtype=WIDE)
    kept: dict[int, int] = {}
    with (
        capture(m, examples=3),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t),
    ):
        m(x.requires_grad_()).sum(dim=(1, 2)).sum().backward()
    assert sum(kept.values()) <= x.numel() + sum(p.numel() for p in m.parameters())


def test_bfloat16_products_leave_gradients_exact_to_float32s_digits() -> None:
    """Under autocast forward products are in bfloat16, and those that make gradients in float32 (bfloat16: 4e-3)."""
    m = layer(4, 32, 48)
    x, g = (
        torch.randn(3, 50, width, dtype=WIDE).bfloat16() for width in (32, 48)
    )  # the layer's input, its output's gradient
    found = {}
    for dtype in (WIDE, torch.float32):
        m.to(dtype)
        with capture(m, examples=3) as grads:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
                y = m(x.to(dtype))
            y.backward(g.to(y.dtype))
        assert y.dtype == (WIDE if dtype == WIDE else torch.bfloat16)
        found[dtype] = {name: form.dense().double() for name, form in grads.items()}
    for name, truth in found[WIDE].items():
        assert (found[torch.float32][name] - truth).norm() < 1e-5 * truth.norm()


def two_adapters(seed: int = 0, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).double()
    model = attach(base, Compacter(bottleneck=4, targets=("0", "2"), **fields), seed=seed)
    g = torch.Generator().manual_seed(2)
    for p in (p for p in model.parameters() if p.requires_grad):
        p.data += 0.3 * torch.randn(p.shape, generator=g).to(p)
    return model


def rules(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if name.endswith(".rule")}


def test_a_shared_rules_gradient_is_the_sum_over_its_uses(close: Callable[..., None]) -> None:
    """A4: the same values in rules of their own tell the uses apart."""
    shared, own = two_adapters(), two_adapters(shared_rule=False)
    own.load_state_dict(shared.state_dict())
    x = torch.randn(5, 3, 8, dtype=WIDE)
    found = []
    for model in (shared, own):
        with capture(model) as grads:
            model(x).sin().sum().backward()
        found.append({name: form for name, form in grads.items() if name.endswith(".rule")})
    (name, of_shared), uses = next(iter(found[0].items())), list(found[1].values())
    assert list(found[0]) == [name] == ["0.adapter_down.rule"]
    assert len(uses) == 4
    total = sum(form.dense() for form in uses)
    close(of_shared.dense(), total)
    close(of_shared.sq_norm(), total.flatten(1).square().sum(dim=1))
    assert of_shared.numel == 5 * 4**3
    # The norm that one would get use by use is another one, and clipping by it would not hold.
    assert (of_shared.sq_norm() > 1.02 * sum(form.sq_norm() for form in uses)).any()


def test_the_rule_is_one_parameter_and_stays_one() -> None:
    model = two_adapters()
    assert len(rules(model)) == 4
    for other in (model, copy.deepcopy(model)):
        assert len({id(p) for p in rules(other).values()}) == 1
        assert [n for n, _ in other.named_parameters() if n.endswith(".rule")] == ["0.adapter_down.rule"]
    base = nn.Sequential(nn.Linear(8, 8))
    returned = Compacter(targets=("0",), bottleneck=4).inject(base, torch.Generator())
    assert len({id(p) for p in returned}) == len(returned) == 7  # the rule, and s, t, bias of two layers
    assert len({id(p) for p in rules(two_adapters(shared_rule=False)).values()}) == 4


@pytest.mark.parametrize("shared_rule", [True, False])
def test_saved_and_restored(shared_rule: bool) -> None:
    """A shared rule is stored once."""
    method = Compacter(bottleneck=4, targets=("0", "2"), shared_rule=shared_rule)
    model, other = (two_adapters(seed, shared_rule=shared_rule) for seed in (0, 1))
    stored = adapter_tensors(model, method)
    assert sum(name.endswith(".rule") for name in stored) == (1 if shared_rule else 4)
    restore(other, method, stored)
    x = torch.randn(3, 8, dtype=WIDE)
    assert torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert len({id(p) for p in rules(other).values()}) == (1 if shared_rule else 4)


def test_at_the_private_start_the_last_factors_and_biases_alone_move() -> None:
    """The rule and the factors before follow from the second step on."""
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(64, 64)).double(), Compacter(8, targets=("0",)))
    with capture(model) as grads:
        model(torch.randn(5, 64, dtype=WIDE)).square().sum().backward()
    moving = {name for name, form in grads.items() if form.dense().any()}
    assert moving == {"0.adapter_up.t", "0.adapter_up.bias"}


@pytest.mark.parametrize(("init", "std"), [("private", 0.5), ("published", 1e-4), ("yu", 2**0.5 / 16)])
def test_starts_of_the_factors(init: Any, std: float) -> None:
    g, n = torch.Generator().manual_seed(0), 16
    assert float(initial_rule(init, n, g).std()) == pytest.approx(std, rel=0.05)
    for up in (False, True):
        s, t = initial_factors(init, n, 16 * 800, 16 * 400, g, up=up)
        assert (s.shape, t.shape) == ((16, 800), (16, 400))
        if init == "yu":
            expected = ((4 / 816) ** 0.5, (4 / (400 + 6400)) ** 0.5)
        else:  # a uniform law ends at sqrt(3) of its standard deviation
            expected = ((4 / 801) ** 0.5, 0.0 if up and init == "private" else (4 / 401) ** 0.5)
            assert float(s.abs().max()) <= (12 / 801) ** 0.5
        assert (float(s.std()), float(t.std())) == pytest.approx(expected, rel=0.05)
    assert Compacter(init=init).identity == (init == "private")


def test_strength_of_the_start_of_yu() -> None:
    """Norm of what the adapter adds over its input's: 0.046 at the published widths of RoBERTa-base."""
    ratios = []
    for seed in range(5):
        method = Compacter(96, n=8, shared_rule=False, bias=False, activation="gelu", init="yu", targets=("0",))
        model = attach(nn.Sequential(nn.Linear(768, 768, bias=False)), method, seed=seed)
        nn.init.eye_(model[0].base_layer.weight)  # type: ignore[index]
        x = torch.randn(64, 768)
        with torch.no_grad():
            ratios.append(float((model(x) - x).norm() / x.norm()))
    assert sum(ratios) / 5 == pytest.approx(0.046, rel=0.15)


@pytest.mark.parametrize(
    ("width", "n", "inside"), [(768, 4, 24), (384, 4, 12), (1600, 4, 48), (16, 4, 4), (768, 8, 24)]
)
def test_width_inside_where_none_is_given(width: int, n: int, inside: int) -> None:
    model = attach(nn.Sequential(nn.Linear(width, width)), Compacter(n=n, targets=("0",)))
    assert model[0].adapter_up.inputs == inside  # type: ignore[union-attr]

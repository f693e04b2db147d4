"""Rational activation functions: the function and its gradients, the fit, where they stand, what is scaled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dpft
from dpft.errors import InputError
from dpft.peft import RAFT, LoRA, Together, attach
from dpft.peft.raft import Rational
from dpft.peft.rational import Version, fit, rational
from dpft.per_sample import capture

WIDE = torch.float64
ACTIVATIONS = {"gelu": nn.GELU(), "silu": nn.SiLU(), "relu": nn.ReLU(), "tanh": nn.Tanh()}
# Largest error on [-6, 6] and [-10, 10]: what README and docstring say, rounded up.
ERRORS = {"gelu": (0.0031, 0.0070), "silu": (0.0005, 0.0019), "relu": (0.03, 0.05), "tanh": (0.0003, 0.0008)}


def by_hand(t: Tensor, a: Tensor, b: Tensor, version: str) -> Tensor:
    """The formula, with a tensor for each power."""
    shape = (-1, *(1,) * (t.dim() - 1))
    P = sum(a[:, j].view(shape) * t**j for j in range(a.shape[1]))
    u = [b[:, k].view(shape) * t ** (k + 1) for k in range(b.shape[1])]
    e = 3e-3
    Q = 1 + sum(x.abs() if version == "safe" else (x**2 + e**2).sqrt() - e for x in u)
    return P / Q  # type: ignore[operator, return-value]


def drawn(m: int, n: int, shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    t, a, b = (torch.randn(*s, generator=g, dtype=WIDE) for s in (shape, (shape[0], m + 1), (shape[0], n)))
    return t.requires_grad_(), a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("version", ["safe", "smooth"])
@pytest.mark.parametrize(("m", "n", "shape"), [(5, 4, (3, 4, 5)), (1, 3, (2, 7)), (4, 1, (1, 2, 2, 2)), (2, 2, (0, 3))])
def test_function_and_gradients_by_hand(version: Version, m: int, n: int, shape: tuple[int, ...]) -> None:
    inputs = drawn(m, n, shape)
    found, truth = rational(*inputs, version), by_hand(*inputs, version)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-13)
    weights = torch.linspace(-1, 2, max(1, found.numel()), dtype=WIDE)[: found.numel()].view(found.shape)
    grads = [torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True) for y in (found, truth)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(-30, 30))
def test_there_are_no_poles(seed: int, size: float) -> None:
    """Q is at least 1, whatever the noise made of the coefficients."""
    _, a, b = drawn(5, 4, (1, 1), seed)
    t = torch.full((1, 1), size, dtype=WIDE)
    for version in ("safe", "smooth"):
        bound = sum(float(a[0, j].abs().detach()) * abs(size) ** j for j in range(6))
        assert abs(float(rational(t, a, b, version).detach())) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("version", ["safe", "smooth"])
def test_the_fit_is_as_near_as_it_says(name: str, version: Version) -> None:
    for c, allowed in zip((6.0, 10.0), ERRORS[name], strict=True):
        found = fit(ACTIVATIONS[name], c, 5, 4, version)
        x = torch.linspace(-c, c, 9973, dtype=WIDE)[None]
        a, b = (torch.tensor([values], dtype=WIDE) for values in (found.a, found.b))
        error = float((rational(x / c, a, b, version) - ACTIVATIONS[name](x)).abs().max())
        assert error == pytest.approx(found.error, rel=0.02, abs=1e-6)
        assert error <= allowed
        assert fit(ACTIVATIONS[name], c, 5, 4, version) == found


def test_gelu_is_fitted_better_than_the_published_coefficients() -> None:
    """The refits of the reference err by 0.0039 and 0.0145 on these ranges."""
    assert fit(nn.GELU(), 6.0, 5, 4, "safe").error < 0.0039
    assert fit(nn.GELU(), 10.0, 5, 4, "safe").error < 0.0145


def test_a_function_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match=r"method\.range"):
        fit(torch.log, 6.0, 5, 4, "safe")


@pytest.mark.parametrize("x", [20.0, -20.0, 30.0, -30.0])
def test_beyond_the_range_the_old_function_goes_on(x: float) -> None:
    """Continuous at the ends and with the old slope behind them, also after training moved the coefficients."""
    act = nn.GELU()
    layer = Rational(act, RAFT(), nn.Linear(1, 1).to(WIDE), width=1)
    with torch.no_grad():
        layer.numerator.add_(0.3)
    at = torch.tensor([[math.copysign(6.0, x), x]], dtype=WIDE)
    end, beyond = layer(at).detach()[0]
    assert float(beyond - end) == pytest.approx(float(act(at[0, 1]) - act(at[0, 0])), abs=1e-12)
    published = Rational(act, RAFT(tails="rational"), nn.Linear(1, 1).to(WIDE), width=1)
    assert abs(float(published(at).detach()[0, 1] - act(at[0, 1]))) > 0.5


@pytest.mark.parametrize("scaling", ["private", "none"])
def test_scaling_changes_no_output_and_no_product(scaling: Any) -> None:
    """theta_j is s_j a_j: the same function, and its gradient is that of a_j over s_j."""
    layer = Rational(nn.GELU(), RAFT(scaling=scaling, tails="rational"), nn.Linear(1, 1).to(WIDE), width=1)
    plain = tuple(torch.tensor([values], dtype=WIDE) for values in (layer.fit.a, layer.fit.b))
    x = torch.randn(1, 50, dtype=WIDE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), rational(x / 6.0, *plain, "safe"), rtol=1e-10, atol=1e-12)
    if scaling == "none":
        raw = sum(float(layer.numerator[j].detach()) * x**j for j in range(6))
        Q = 1 + sum((float(layer.denominator[k].detach()) * x ** (k + 1)).abs() for k in range(4))
        torch.testing.assert_close(layer(x), raw / Q, rtol=1e-9, atol=1e-12)


def test_scaled_gradients_are_of_one_size() -> None:
    """That of a single number's bias, on inputs as the scaling assumes; the raw ones differ by orders of magnitude."""
    x = torch.randn(200, 64, dtype=WIDE, generator=torch.Generator().manual_seed(0))

    def sizes(scaling: Any) -> torch.Tensor:
        layer = Rational(nn.GELU(), RAFT(scaling=scaling), nn.Linear(1, 1).to(WIDE), width=64)
        with capture(layer, examples=200) as grads:
            (layer(x) * torch.randn(x.shape, dtype=WIDE, generator=torch.Generator().manual_seed(1))).sum().backward()
        return grads["numerator"].dense().square().mean(dim=0).sqrt()

    assert ((sizes("private") > 0.8) & (sizes("private") < 1.25)).all()
    assert float(sizes("none").max() / sizes("none").min()) > 10


def test_a_function_knows_how_many_numbers_share_it(tiny_encoder: Callable[..., Any]) -> None:
    """Four times the width, half the coefficient for the same trained number; beside LoRA as alone."""
    model = attach(tiny_encoder("bert"), Together((LoRA(rank=2, targets=("all-linear",)), RAFT())))
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Rational)}
    alone = {width: Rational(nn.GELU(), RAFT(), nn.Linear(1, 1), width).scales for width in (16, 64)}
    assert alone[64][0] == pytest.approx([2 * s for s in alone[16][0]])
    inner = model.config.intermediate_size
    expected = Rational(nn.GELU(), RAFT(), nn.Linear(1, 1), inner).scales
    assert [m.scales for name, m in layers.items() if "pooler" not in name] == [expected] * 2


def test_large_inputs_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of rows and of columns give what the whole gives, and the gradients too."""
    g = torch.Generator().manual_seed(0)
    t = torch.randn(5, 3, 4, dtype=WIDE, generator=g, requires_grad=True)
    a, b = (torch.randn(5, n, dtype=WIDE, generator=g, requires_grad=True) for n in (6, 4))
    whole = rational(t, a, b, "safe")
    grads = torch.autograd.grad(whole.square().sum(), (t, a, b))
    for size in (5, 24):
        monkeypatch.setattr("dpft.peft.rational._BLOCK", size)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        pieces = rational(t, a, b, "safe")
        torch.testing.assert_close(pieces, whole)
        torch.testing.assert_close(torch.autograd.grad(pieces.square().sum(), (t, a, b)), grads)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "vit"])
def test_every_activation_is_replaced_once(family: str, tiny_encoder: Callable[..., Any]) -> None:
    model = tiny_encoder(family)
    attach(model, RAFT())
    layers = [m for m in model.modules() if isinstance(m, Rational)]
    blocks = {"t5": 4}.get(family, 2)
    assert len(layers) == blocks + (family in ("bert", "vit"))  # with a pooler
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 10 * len(layers)
    assert len({id(layer.numerator) for layer in layers}) == len(layers)


def test_a_model_of_real_size_hardly_changes(tiny_encoder: Callable[..., Any]) -> None:
    model = tiny_encoder("bert")
    ids = torch.randint(1, 23, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids).last_hidden_state
        after = attach(model, RAFT())(ids).last_hidden_state
    assert 0 < float((after - before).norm() / before.norm()) < 0.02


WRONG: dict[str, dict[str, Any]] = {
    "numerator": {"numerator": 0},
    "denominator": {"denominator": 1.5},
    "at most 12": {"numerator": 13},
    "range": {"range": 0.0},
    "version": {"version": "b"},
    "tails": {"tails": "none"},
    "scaling": {"scaling": True},
}


@pytest.mark.parametrize(("words", "fields"), WRONG.items(), ids=WRONG.keys())
def test_bad_fields_are_refused(words: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=words):
        RAFT(**fields)


def test_a_model_without_activation_modules_is_refused() -> None:
    with pytest.raises(InputError):
        attach(nn.Sequential(nn.Linear(2, 2)), dpft.RAFT())

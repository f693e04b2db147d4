"""A6: entries of a matrix under a mask: norms, sums and gradients are those of what trains, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from dpft.per_sample import Dense, Outer, capture, masked, total
from dpft.per_sample.masked import Masked, scattered, under

tiny = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = {"B": st.integers(0, 4), "T": st.integers(1, 6), "R": st.integers(1, 6), "C": st.integers(1, 5)}


def factors(B: int, T: int, R: int, C: int, g: torch.Generator) -> Outer:
    left, right = (torch.randn(B, T, n, generator=g, dtype=torch.float64) for n in (R, C))
    return Outer(left, right)


def by_hand(form: Outer, mask: Tensor) -> Tensor:
    """[B, K], entry by entry: the sum over tokens of left times right at every place of the mask, row by row."""
    places = [(r, c) for r in range(mask.shape[0]) for c in range(mask.shape[1]) if mask[r, c]]
    each = [(form.left[:, :, r] * form.right[:, :, c]).sum(dim=1) for r, c in places]
    return torch.stack(each, dim=1) if each else form.left.new_zeros(form.batch, 0)


@tiny
@given(seed=st.integers(0, 999), density=st.floats(0, 1), **sizes)
def test_norm_and_sum_are_those_of_the_entries(
    same_form: Callable[..., None], B: int, T: int, R: int, C: int, seed: int, density: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    form, mask = factors(B, T, R, C, g), torch.rand(R, C, generator=g) < density
    truth = by_hand(form, mask)
    for part, expected in ((Masked(form, mask), truth), (Masked(form, mask).part(slice(1, 3)), truth[1:3])):
        same_form(Dense(part.dense()), expected)
        sq, room = expected.square().sum(dim=1), 200 * torch.finfo(torch.float64).eps * part.whole.span().square()
        assert ((sq <= part.sq_norm()) | torch.isclose(sq, part.sq_norm(), rtol=1e-12)).all()
        assert (part.sq_norm() <= sq + room).all()  # what rounding may take, of terms that may cancel
        c = torch.linspace(-1.5, 2.0, len(expected), dtype=torch.float64)
        torch.testing.assert_close(part.weighted_sum(c), c @ expected)
    same_form(Dense(under(mask, form).dense()), truth)
    same_form(under(mask, Dense(form.dense())), truth)
    same_form(total([Masked(form, mask), Masked(form, mask), Dense(truth)]), 3 * truth)


@pytest.mark.parametrize("tokens", [127, 128, 129, 300])
def test_many_examples_and_tokens_go_in_pieces(
    tokens: int, same_form: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out two examples at a time, tokens in chains of 128: the same numbers."""
    monkeypatch.setattr(masked, "_AT_ONCE", 2 * 6 * 5)
    g = torch.Generator().manual_seed(0)
    form, mask = factors(5, tokens, 6, 5, g), torch.rand(6, 5, generator=g) < 0.3
    same_form(Masked(form, mask), form.dense()[:, mask])
    sizes = [len(piece) for piece in Masked(form, mask)._laid_out()]
    assert sizes == [2, 2, 1]


def test_the_norm_is_not_that_of_the_whole_gradient() -> None:
    """The ghost norm of W would clip harder: an upper bound, here by far."""
    g = torch.Generator().manual_seed(0)
    form, mask = factors(3, 4, 40, 30, g), torch.rand(40, 30, generator=g) < 0.1
    assert (Masked(form, mask).sq_norm() < 0.3 * form.sq_norm()).all()


def test_a_float32_norm_does_not_come_out_too_small() -> None:
    """Terms that cancel: the norm taken is at least that of the exact entries."""
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(4, 300, 9, generator=g), torch.randn(4, 300, 7, generator=g)
    left = torch.cat([left, -left], dim=1)
    right = torch.cat([right, right + 1e-6 * torch.randn(right.shape, generator=g)], dim=1)
    mask = torch.rand(9, 7, generator=g) < 0.5
    exact = Outer(left.double(), right.double()).dense()[:, mask].square().sum(dim=1)
    assert (Masked(Outer(left, right), mask).sq_norm() >= exact).all()


class Layer(nn.Module):
    def __init__(self, base: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.base, self.mask = base.requires_grad_(False), mask
        self.values = nn.Parameter(torch.randn(int(mask.sum())))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional_call(self.base, {"weight": scattered(self.values, self.mask)}, (x,))
        return y


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sin().add(0.3).square().flatten(1).sum(dim=1)


@pytest.mark.parametrize("shape", [(3, 30), (3, 2, 30), (1, 2, 30), (0, 2, 30), (4, 90, 30)], ids=str)
@pytest.mark.parametrize("make", [lambda: nn.Linear(30, 40), lambda: Conv1D(40, 30)], ids=["linear", "conv1d"])
def test_a_layer_equals_one_example_at_a_time(
    make: Callable[[], nn.Module], shape: tuple[int, ...], agree: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    base = make()
    layer = Layer(base, torch.rand(base.get_parameter("weight").shape) < 0.3).double()
    grads = agree(layer, squares, torch.randn(shape, dtype=torch.float64))
    tokens = shape[1] if len(shape) == 3 else 1
    lean = shape[0] > 0 and tokens * (30 + 40) < len(layer.values)  # numbers an example
    assert isinstance(grads["values"], Masked) == lean


def test_a_layer_called_twice_adds_its_factors(agree: Callable[..., Any]) -> None:
    """A1: the norm of the sum, not the sum of norms."""
    torch.manual_seed(0)
    layer = Layer(nn.Linear(30, 30), torch.rand(30, 30) < 0.5).double()
    x = torch.randn(3, 2, 30, dtype=torch.float64)
    grads = agree(layer, lambda model, x: squares(lambda x: model(model(x).tanh()), x), x)
    assert isinstance(grads["values"], Masked)


def test_outside_a_capture_it_is_a_plain_matrix() -> None:
    values, mask = nn.Parameter(torch.tensor([1.0, 2.0])), torch.tensor([[True, False], [False, True]])
    made = scattered(values, mask)
    assert torch.equal(made, torch.diag(torch.tensor([1.0, 2.0])))
    made[0, 0].backward()
    assert torch.equal(values.grad, torch.tensor([1.0, 0.0]))
    with capture(nn.ParameterList([values])), torch.no_grad():
        assert torch.equal(scattered(values, mask), made)


def test_what_is_not_finite_becomes_exact_zeros() -> None:
    """A9."""
    g = torch.Generator().manual_seed(0)
    form, mask = factors(3, 2, 6, 5, g), torch.rand(6, 5, generator=g) < 0.5
    form.left[1] = float("nan")
    assert not torch.isfinite(Masked(form, mask).sq_norm()[1])
    kept = Masked(form, mask).keep(torch.tensor([True, False, True]))
    assert not kept.dense()[1].any()
    assert float(kept.sq_norm()[1]) == 0.0
    assert torch.isfinite(kept.weighted_sum(torch.ones(3))).all()

"""A1: several uses of one parameter are added as vectors before a norm is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpft.per_sample import Dense, Outer, Rows
from dpft.per_sample.forms import RowsAndOuter

D = 6


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sin().add(0.3).square().flatten(1).sum(dim=1)


class Tied(nn.Module):
    """A language model's table: looked up at the bottom, multiplied at the top."""

    def __init__(self, V: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D, padding_idx=padding_idx)
        self.mix = nn.Linear(D, D)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.mix(x).tanh().cumsum(dim=1))


@pytest.mark.parametrize(
    ("V", "T", "form"),
    # Dense holds V * D = 6 V numbers an example, the factored form T * (V + 2 D + 1) = T (V + 13).
    [(40, 2, RowsAndOuter), (40, 4, RowsAndOuter), (4, 5, Dense), (40, 8, Dense)],
)
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_tied_embedding_and_head(
    V: int, T: int, form: type, padding_idx: int | None, agree: Callable[..., Any]
) -> None:
    """A1: rows that occur several times and rows that are only predicted, in both forms."""
    torch.manual_seed(V + T)
    ids = torch.randint(0, min(V, 3), (4, T))  # repeats; the other rows are reached by the head alone
    grads = agree(Tied(V, padding_idx).double(), squares, ids)
    assert type(grads["embed.weight"]) is form
    assert "head.weight" not in grads


def test_tied_uses_do_cancel() -> None:
    """A1: look-up and product that undo each other leave a zero norm; root-sum-square would not."""
    rows = Rows(torch.tensor([[3]]), torch.tensor([[[1.0, -2.0]]], dtype=torch.float64), 50)
    left = torch.zeros(1, 1, 50, dtype=torch.float64)
    left[0, 0, 3] = -1.0
    outer = Outer(left, torch.tensor([[[1.0, -2.0]]], dtype=torch.float64))
    form = rows + outer
    assert type(form) is RowsAndOuter
    assert not form.dense().any()
    assert float(form.sq_norm()) < 1e-12


class Twice(nn.Module):
    """One layer called twice in a row, with other inputs the second time."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


@pytest.mark.parametrize("T", [1, 2, 30])
@pytest.mark.parametrize("make", [lambda: nn.Linear(D, D), lambda: nn.LayerNorm(D), lambda: nn.RMSNorm(D)])
def test_layer_called_twice(make: Callable[[], nn.Module], T: int, agree: Callable[..., Any]) -> None:
    torch.manual_seed(T)
    agree(Twice(make()).double(), squares, torch.randn(3, T, D, dtype=torch.float64))


class Shared(nn.Module):
    """One weight in two layers, one of which uses it transposed, and once elementwise."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(D, D), nn.Linear(D, D, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.two(self.one(x).tanh())
        return h @ self.one.weight + self.one.bias * x


@pytest.mark.parametrize("T", [1, 3, 20])
def test_parameter_shared_by_two_modules(T: int, agree: Callable[..., Any]) -> None:
    torch.manual_seed(T)
    grads = agree(Shared().double(), squares, torch.randn(3, T, D, dtype=torch.float64))
    assert set(grads) == {"one.weight", "one.bias"}


class TwoTables(nn.Module):
    """An embedding looked up twice: two sets of rows join."""

    def __init__(self, V: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids) * self.embed(ids.flip(1)).cos()


@pytest.mark.parametrize(("V", "form"), [(200, Rows), (5, Dense)])
def test_embedding_looked_up_twice(V: int, form: type, agree: Callable[..., Any]) -> None:
    grads = agree(TwoTables(V).double(), squares, torch.tensor([[0, 1, 1, 4], [2, 2, 2, 2], [0, 3, 4, 1]]))
    assert type(grads["embed.weight"]) is form


@pytest.mark.parametrize("B", [0, 1])
def test_tied_in_small_batches(B: int, agree: Callable[..., Any]) -> None:
    agree(Tied(40).double(), squares, torch.zeros(B, 2, dtype=torch.long))

"""The short way: a layer's call that was seen before goes to its rule at once, and no other call does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpft.engine.preflight import preflight
from dpft.errors import NoRuleError
from dpft.per_sample import Uses, capture, dispatch, per_example_gradients


class Layers(nn.Module):
    """Every kind of stock layer on the examples; with ``by_rows`` another on two rows an example."""

    def __init__(self, *, by_rows: bool = False) -> None:
        super().__init__()
        self.table, self.linear, self.norm = nn.Embedding(7, 8), nn.Linear(8, 6), nn.LayerNorm(6)
        self.mixed = nn.Linear(6, 5)
        self.mixed.weight.requires_grad_(False)
        self.rows = nn.Linear(5, 4) if by_rows else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixed(self.norm(self.linear(self.table(x)).sin()))  # [B, 4, 5]
        if self.rows is not None:
            y = self.rows(y.reshape(2 * len(y), 2, 5)).reshape(len(y), 4, 4)
        return y.sin().flatten(1).sum(dim=1)


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"])


def learnt(**kind: Any) -> tuple[nn.Module, dict[str, Tensor], Uses]:
    torch.manual_seed(0)
    model, batch = Layers(**kind).double(), {"x": torch.randint(0, 7, (5, 4))}
    return model, batch, preflight(model, loss, batch)


def test_layers_that_were_seen_take_the_short_way(monkeypatch: pytest.MonkeyPatch, close: Callable[..., None]) -> None:
    """One with a frozen weight takes the long one, in which every argument is looked at."""
    model, batch, uses = learnt()
    truth = per_example_gradients(model, loss, batch)
    taken, whole = [], dispatch.tensors
    monkeypatch.setattr(dispatch, "tensors", lambda nested: taken.append(nested[0][-1]) or whole(nested))
    with capture(model, examples=5, uses=uses) as grads:
        loss(model, batch).sum().backward()
    assert [p.shape for p in taken] == [(5,)]  # that layer's bias
    for name, g in truth.items():
        close(grads[name].dense(), g)


def test_more_rows_than_examples_go_the_long_way(close: Callable[..., None]) -> None:
    model, batch, uses = learnt(by_rows=True)
    truth = per_example_gradients(model, loss, batch)
    with capture(model, examples=5, uses=uses) as grads:
        loss(model, batch).sum().backward()
    for name, g in truth.items():
        close(grads[name].dense(), g)


@pytest.mark.parametrize("examples", [4, 10])
def test_rows_that_are_not_the_examples_raise(examples: int) -> None:
    model, batch, uses = learnt()
    with pytest.raises(NoRuleError), capture(model, examples=examples, uses=uses):
        loss(model, batch).sum().backward()

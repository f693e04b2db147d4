"""A7: checkpointing, autocast and dropout leave the gradients per example, or are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from dpft.engine.clipping import clipped_sum
from dpft.per_sample import Grads, capture

D = 6


class Stack(nn.Module):
    """Embedding, two blocks and a head; ``run`` is how a block is called."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, D)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(D)) for _ in range(2)
        )
        self.head = nn.Linear(D, 3)
        self.run: Callable[[nn.Module, Tensor], Tensor] = lambda block, x: block(x)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + self.run(block, x)
        return self.head(x.mean(dim=1))


def gradients(model: nn.Module, ids: Tensor, context: torch.autocast | None = None) -> Grads:
    with capture(model) as grads:
        if context is None:
            losses = model(ids).square().sum(dim=1)
        else:
            with context:
                losses = model(ids).float().square().sum(dim=1)
        losses.sum().backward()
    return grads


IDS = torch.tensor([[1, 2, 3, 3], [4, 5, 1, 0], [8, 8, 8, 8]])


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_identical_gradients(reentrant: bool) -> None:
    """A7: the forward pass runs twice, each use is counted once."""
    model = Stack().double()
    plain = gradients(model, IDS)
    model.run = lambda block, x: checkpoint(block, x, use_reentrant=reentrant)
    again = gradients(model, IDS)
    assert set(plain) == set(again)
    for name in plain:
        assert torch.equal(plain[name].dense(), again[name].dense()), name
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_behind_a_frozen_input_reports_what_it_loses() -> None:
    """A7, A12: torch drops the gradients there; the preflight refuses a parameter that is missing."""
    model = Stack().double()
    model.embed.requires_grad_(False)
    model.run = lambda block, x: checkpoint(block, x, use_reentrant=True)
    assert "blocks.0.0.weight" in gradients(model, IDS).missing
    model.run = lambda block, x: checkpoint(block, x, use_reentrant=False)
    assert gradients(model, IDS).missing == ()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize("before", [False, True], ids=["compiled in a capture", "compiled before it"])
def test_a_compiled_model_gives_the_same_gradients(before: bool) -> None:
    """A7: the rules run between the graphs, and no graph is taken from outside a capture to within it.

    Without the code generator, which needs a C++ compiler and gets the same graphs."""
    model = Stack().double()
    plain = gradients(model, IDS)
    torch._dynamo.reset()
    counters.clear()
    model.compile(backend="aot_eager")
    if before:
        model(IDS).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()
    for ids in (IDS, IDS, IDS[:2]):
        found = gradients(model, ids)
        assert set(found) == set(plain)
        for name in plain:
            torch.testing.assert_close(found[name].dense(), plain[name].dense()[: len(ids)], rtol=1e-9, atol=1e-12)
    assert counters["stats"]["unique_graphs"] > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_autocast_gives_the_same_gradients_to_its_own_precision(frozen: bool) -> None:
    """A10: bfloat16 has 8 bits; some ten roundings in a row leave 5 % of a gradient's norm at most."""
    model = Stack()
    model.embed.requires_grad_(not frozen)
    plain, cast = gradients(model, IDS), gradients(model, IDS, torch.autocast("cpu", torch.bfloat16))
    assert set(plain) == set(cast)
    for name in plain:
        truth, found = plain[name].dense(), cast[name].dense().float()
        assert float((found - truth).norm()) <= 0.05 * float(truth.norm()), name
        assert bool((cast[name].sq_norm().sqrt() >= found.flatten(1).norm(dim=1) * (1 - 2**-7)).all())


def test_autocast_matches_what_autocast_does_without_capture() -> None:
    """The rules cast where torch casts: the loss is bit-identical."""
    model = Stack()
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(IDS)
        with capture(model):
            assert torch.equal(model(IDS), plain)


def test_dropout_draws_for_each_example_and_the_bound_holds() -> None:
    """A7: two equal examples get different masks, and each draw's contribution stays within C."""
    model = Stack(dropout=0.5).double().train()
    twins = IDS[:1].repeat(2, 1)
    torch.manual_seed(1)
    for _ in range(20):
        grads = gradients(model, twins)
        one, two = grads["head.weight"].dense()
        assert not torch.equal(one, two)
        for i in range(2):
            kept = {name: grads[name].keep(torch.arange(2) == i) for name in grads}
            sums, _ = clipped_sum(kept, 0.1)
            assert float(torch.cat([s.dense().flatten() for s in sums.values()]).norm()) <= 0.1 * (1 + 1e-9)


def test_dropout_and_checkpointing_together_replay_the_same_mask() -> None:
    """A7: the bound is taken on the graph whose gradient is released."""
    model = Stack(dropout=0.5).double().train()
    torch.manual_seed(3)
    plain = gradients(model, IDS)
    model.run = lambda block, x: checkpoint(block, x, use_reentrant=False)
    torch.manual_seed(3)
    again = gradients(model, IDS)
    for name in plain:
        assert torch.equal(plain[name].dense(), again[name].dense()), name

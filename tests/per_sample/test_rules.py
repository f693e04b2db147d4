"""A2, A5, A6: every rule against one example at a time, in float64, over ranks, lengths and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dpft.per_sample import Dense, Outer, capture, expand

I, O = 5, 4  # noqa: E741  inputs and outputs, as in the rules


def squares(model: nn.Module, x: Tensor) -> Tensor:
    """A loss of each example that no unit of the output escapes, with gradients that differ by token."""
    return model(x).sin().add(0.3).square().flatten(1).sum(dim=1)


class ByHand(nn.Module):
    """An RMSNorm written out, as in Llama: ``weight * x``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(I))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class Gate(nn.Module):
    """A parameter that meets activations through one elementwise function."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = (I,)) -> None:
        super().__init__()
        self.use, self.p = use, nn.Parameter(torch.rand(shape) + 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.p)


class Product(nn.Module):
    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.use, self.p = use, nn.Parameter(torch.randn(I, O))

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.p)


class Expanded(nn.Module):
    """A table of coefficients used in ways that have no rule of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(I, I))

    def forward(self, x: Tensor) -> Tensor:
        each = expand(self.p, x.shape[0])
        return torch.einsum("bij,b...j->b...i", each.exp() * 0.1, x)


def only(module: nn.Module, name: str) -> nn.Module:
    for other, p in module.named_parameters():
        p.requires_grad_(other == name)
    return module


def conv1d() -> nn.Module:
    module = Conv1D(O, I)
    nn.init.normal_(module.bias)
    return module


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(I, O),
    "linear without bias": lambda: nn.Linear(I, O, bias=False),
    "linear, bias alone": lambda: only(nn.Linear(I, O), "bias"),
    "linear, weight alone": lambda: only(nn.Linear(I, O), "weight"),
    "conv1d": conv1d,
    "conv1d, bias alone": lambda: only(conv1d(), "bias"),
    "conv1d, weight alone": lambda: only(conv1d(), "weight"),
    "layer norm": lambda: nn.LayerNorm(I),
    "layer norm, bias alone": lambda: only(nn.LayerNorm(I), "bias"),
    "layer norm, weight alone": lambda: only(nn.LayerNorm(I), "weight"),
    "layer norm without bias": lambda: nn.LayerNorm(I, bias=False),
    "layer norm without weight": lambda: Gate(lambda x, p: F.layer_norm(x, (I,), None, p)),
    "rms norm": lambda: nn.RMSNorm(I),
    "rms norm by hand": ByHand,
    "x * p": lambda: Gate(lambda x, p: x * p),
    "p * x": lambda: Gate(lambda x, p: p * x),
    "x + p": lambda: Gate(lambda x, p: x + p),
    "p + x": lambda: Gate(lambda x, p: p + x),
    "x - p": lambda: Gate(lambda x, p: x - p),
    "p - x": lambda: Gate(lambda x, p: p - x),
    "x / p": lambda: Gate(lambda x, p: x / p),
    "p / x": lambda: Gate(lambda x, p: p / (2.0 + x.sin())),
    "torch.add alpha": lambda: Gate(lambda x, p: torch.add(x, p, alpha=0.5)),
    "scalar gate": lambda: Gate(lambda x, p: x * p, ()),
    "one-element gate": lambda: Gate(lambda x, p: x * p, (1,)),
    "x @ p": lambda: Product(lambda x, p: x @ p),
    "matmul": lambda: Product(torch.matmul),
    "expand": Expanded,
}  # fmt: skip
SHAPES = [(3, I), (3, 1, I), (3, 7, I), (3, 2, 3, I), (1, 4, I), (0, I), (0, 4, I), (0, 2, 3, I)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_rule_equals_one_example_at_a_time(
    make: Callable[[], nn.Module], shape: tuple[int, ...], agree: Callable[..., Any]
) -> None:
    """A6: rank 2 to 4, batches of 0, 1 and several."""
    torch.manual_seed(0)
    module = make().double()
    with torch.no_grad():  # stock norms start at ones and zeros
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    agree(module, squares, torch.randn(shape, dtype=torch.float64))


class Padded(nn.Module):
    """Embedding, a mixing layer, norm and head: the loss of an example counts its own tokens alone."""

    def __init__(self, padding_idx: int | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, I, padding_idx=padding_idx)
        self.mix, self.norm, self.head = nn.Linear(I, I), nn.LayerNorm(I), nn.Linear(I, O)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + self.mix(x).tanh()))


def token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy summed over an example's labelled tokens; -100 is ignored."""
    logits = model(batch["ids"])
    return F.cross_entropy(logits.movedim(-1, 1), batch["labels"], reduction="none").sum(dim=1)


def padded_batch(lengths: list[int], T: int, left: bool, pad: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 9, (len(lengths), T), generator=g)
    labels = torch.randint(0, O, ids.shape, generator=g)
    for i, n in enumerate(lengths):
        empty = slice(0, T - n) if left else slice(n, T)
        ids[i, empty], labels[i, empty] = pad, -100
    return {"ids": ids, "labels": labels}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    left=st.booleans(),
    padding_idx=st.sampled_from([None, 0, 3, 8, -1, -9]),
    seed=st.integers(0, 99),
)
def test_padding_counts_nowhere(
    agree: Callable[..., Any], lengths: list[int], left: bool, padding_idx: int | None, seed: int
) -> None:
    """A3, A5: each example equals itself alone and unpadded, whatever the padding holds and where it is."""
    torch.manual_seed(seed)
    model = Padded(padding_idx).double()
    T, pad = 6, (padding_idx or 0) % 9
    grads = agree(model, token_loss, padded_batch(lengths, T, left, pad, seed))
    for i, n in enumerate(lengths):
        alone = padded_batch(lengths, T, left, pad, seed)
        cut = slice(T - n, T) if left else slice(0, n)
        alone = {name: t[i : i + 1, cut] for name, t in alone.items()}
        if n:
            with capture(model) as short:
                token_loss(model, alone).sum().backward()
            for name in grads:
                torch.testing.assert_close(short[name].dense()[0], grads[name].dense()[i], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("padding_idx", [2, -7])
def test_padding_row_gets_no_gradient_also_where_the_loss_reads_it(padding_idx: int, agree: Callable[..., Any]) -> None:
    """A5: a negative index counts from the end; F.embedding is called directly, nn.Embedding would resolve it."""
    table = nn.Embedding(9, I).double()

    def loss(model: nn.Embedding, ids: Tensor) -> Tensor:
        return F.embedding(ids, model.weight, padding_idx).square().sum(dim=(1, 2))

    grads = agree(table, loss, torch.tensor([[2, 2, 1], [0, 2, 5]]))
    assert not grads["weight"].dense()[:, 2].any()


def test_factors_are_kept_when_they_are_smaller_and_only_then(agree: Callable[..., Any]) -> None:
    """I * O = 20 numbers an example against T * (I + O) = 9 T: dense from T = 3 on."""
    model = nn.Linear(I, O).double()
    for T, form in ((1, Outer), (2, Outer), (3, Dense), (40, Dense)):
        grads = agree(model, squares, torch.randn(2, T, I, dtype=torch.float64))
        assert type(grads["weight"]) is form


def test_long_inputs_of_a_wide_layer_stay_factored(agree: Callable[..., Any]) -> None:
    model = nn.Linear(64, 48).double()
    grads = agree(model, squares, torch.randn(2, 20, 64, dtype=torch.float64))
    assert type(grads["weight"]) is Outer


def test_norm_over_several_dimensions(agree: Callable[..., Any]) -> None:
    agree(nn.LayerNorm((3, I)).double(), squares, torch.randn(2, 4, 3, I, dtype=torch.float64))


def test_gradient_that_lies_by_columns(agree: Callable[..., Any]) -> None:
    """A key's in attention: no view of it has the tokens in a row."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).mT.contiguous().sin().square().sum(dim=(1, 2))

    for module in (nn.Linear(I, O), nn.LayerNorm(I)):
        agree(module.double(), loss, torch.randn(3, 7, I, dtype=torch.float64))


@pytest.mark.parametrize("name", ["linear", "conv1d", "layer norm", "layer norm without bias", "matmul"])
def test_autocast_gives_what_the_plain_model_gives(name: str) -> None:
    """In value and in number type: a layer that answered in float32 would widen all that comes after it."""
    module, x = MODULES[name](), torch.randn(3, 7, I).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        plain = module(x)
        with capture(module, examples=3):
            found = module(x)
    assert found.dtype == plain.dtype
    assert torch.equal(found, plain)


def test_norm_keeps_one_activation_and_is_exact_in_bfloat16(close: Callable[..., None]) -> None:
    """What is kept is the input; the sums over tokens are of float32 products."""
    norm, x = nn.LayerNorm(64), torch.randn(3, 50, 64).bfloat16().requires_grad_()
    kept: list[Tensor] = []
    with capture(norm, examples=3) as grads:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = norm(x)
        y.float().square().sum().backward()
    assert [t.dtype for t in kept if t.shape == x.shape] == [torch.bfloat16]
    g, exact = 2 * y.detach().float(), F.layer_norm(x.detach().float(), (64,))
    close(grads["weight"].dense(), (g * exact).sum(1), 1e-6)
    close(grads["bias"].dense(), g.sum(1), 1e-6)


def test_capture_leaves_the_model_as_it_was() -> None:
    """Nothing is wrapped: classes, state_dict and the forward value are those of the plain model."""
    model, x = nn.Linear(I, O).double(), torch.randn(2, I, dtype=torch.float64)
    before = model(x)
    with capture(model) as grads:
        assert torch.equal(model(x), before)
        assert list(model.state_dict()) == ["weight", "bias"]
        model(x).sum().backward()
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert set(grads) == {"weight", "bias"}

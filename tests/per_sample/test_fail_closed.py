"""A2, A11: a use is exact, or it raises and names the parameter; nothing unclipped is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.engine.preflight import _compare
from dpft.errors import PrivacyError
from dpft.per_sample import Dense, Grads, capture, expand, per_example_gradients

D = 4


class Uses(nn.Module):
    """One parameter ``odd``, used as a test says."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.use, self.odd = use, nn.Parameter(torch.rand(shape or (D, D)) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.odd, x)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sin().flatten(1).sum(dim=1)


def backward(model: nn.Module, x: Tensor) -> Grads:
    with capture(model, examples=x.shape[0]) as grads:
        loss(model, x).sum().backward()
    return grads


def exact(model: nn.Module, x: Tensor, same_form: Callable[..., None]) -> bool:
    """Whether the use is taken; if so it must equal the oracle, if not it must name the parameter."""
    try:
        grads = backward(model, x)
    except PrivacyError as refusal:
        named, found = "odd" in str(refusal), False
    else:
        same_form(grads["odd"], per_example_gradients(model, loss, x)["odd"])
        named = found = True
    assert named
    assert model.odd.grad is None
    assert type(model.odd) is nn.Parameter
    return found


NO_RULE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "p.t()": lambda p, x: x @ p.t(),
    "p.T": lambda p, x: x @ p.T,
    "p.mT": lambda p, x: x @ p.mT,
    "exp": lambda p, x: x @ torch.exp(p),
    "einsum": lambda p, x: torch.einsum("btd,de->bte", x, p),
    "p @ x": lambda p, x: p @ x.mT,
    "p @ p": lambda p, x: x + p @ p,
    "p * p": lambda p, x: x @ (p * p),
    "index": lambda p, x: x * p[0],
    "unsqueeze": lambda p, x: x * p.unsqueeze(0),
    "expand": lambda p, x: x @ p.expand(x.shape[0], D, D),
    "view": lambda p, x: x @ p.view(D, D),
    "to": lambda p, x: x @ p.to(torch.float32).double(),
    "cat": lambda p, x: torch.cat([x, p.expand(x.shape[0], D, D)], 1),
    "stack": lambda p, x: x + torch.stack([p] * x.shape[0]).sum(1, keepdim=True),
    "sum": lambda p, x: x * p.sum(),
    "norm": lambda p, x: x / p.norm(),
    "unbind": lambda p, x: x * p.unbind()[0],
    "chunk": lambda p, x: x @ torch.cat(torch.chunk(p, 2), 0),
    "where": lambda p, x: torch.where(x[:, :D] > 0, p, x[:, :D]),
    "bmm": lambda p, x: torch.bmm(x, p.expand(x.shape[0], D, D)),
    "clone": lambda p, x: x @ p.clone(),
    "addmm onto a matrix": lambda p, x: torch.addmm(p, x[0, :D], x[1, :D]),
    "mul_": lambda p, x: x.clone().mul_(p[0]),
    "add with two parameters": lambda p, x: x + torch.add(p, p),
    "layer norm of the parameter": lambda p, x: x * F.layer_norm(p, (D,)).sum(),
    "weight norm": lambda p, x: x @ (p / p.norm(dim=0, keepdim=True)),
}  # fmt: skip


# What remains: shapes that reach over the batch, and a row of one example used for all.
REFUSED = {"p @ p", "unsqueeze", "stack", "addmm onto a matrix", "add with two parameters"}


@pytest.mark.parametrize("use", NO_RULE.values(), ids=NO_RULE.keys())
def test_function_without_a_rule_is_exact_or_refused_by_name(
    use: Callable[[Tensor, Tensor], Tensor], same_form: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    """On a number of examples that is also a size of the parameter."""
    taken = [exact(Uses(use).double(), torch.randn(B, 5, D, dtype=torch.float64), same_form) for B in (3, D)]
    name = request.node.callspec.id
    assert taken == [name not in REFUSED] * 2


class Attention(nn.MultiheadAttention):
    """One torch function that gives a tuple."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = super().forward(x, x, x)[0]
        return out


EXACT: list[nn.Module] = [
    nn.Conv1d(5, 2, 1), nn.PReLU(), nn.GroupNorm(5, 5), nn.Conv2d(3, 2, 2, groups=1), Attention(D, 2),
]  # fmt: skip
REFUSED_STOCK: list[tuple[nn.Module, int]] = [
    (nn.Bilinear(D, D, 2), 2),
    (nn.GRU(D, 3), 1),
]


@pytest.mark.parametrize("layer", EXACT, ids=lambda layer: type(layer).__name__)
def test_stock_layer_is_exact(layer: nn.Module, same_form: Callable[..., None]) -> None:
    """Without a rule of its own, but for Conv2d: one copy an example."""
    shape = (3, 3, 5, D) if isinstance(layer, nn.Conv2d) else (3, 5, D)
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    grads = backward(layer, x)
    for name, truth in per_example_gradients(layer, loss, x).items():
        same_form(grads[name], truth)


@pytest.mark.parametrize(("layer", "inputs"), REFUSED_STOCK, ids=lambda value: type(value).__name__)
def test_stock_layer_without_a_rule_is_refused(layer: nn.Module, inputs: int) -> None:
    with pytest.raises(PrivacyError), capture(layer, examples=3):
        layer(*[torch.randn(3, 5, D)] * inputs)
    assert all(p.grad is None for p in layer.parameters())


HIDDEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "assignment": lambda p, x: _assigned(x, p),
    "a function of somebody's own": lambda p, x: x @ _leak(p),
}  # fmt: skip


def _assigned(x: Tensor, p: Tensor) -> Tensor:
    y = x.clone()
    y[:, :D] = p  # returns nothing, so there is no result to refuse
    return y


def _leak(p: Tensor) -> Tensor:
    """A function that torch does not announce: a plain autograd function of somebody's own."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, p: Tensor) -> Tensor:
            return p * 1.0

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    return Own.apply(p)


@pytest.mark.parametrize("kept", [False, True], ids=["no gradient before", "a gradient before"])
@pytest.mark.parametrize("use", HIDDEN.values(), ids=HIDDEN.keys())
def test_ordinary_gradient_that_slips_past_is_found_and_dropped(
    use: Callable[[Tensor, Tensor], Tensor], kept: bool
) -> None:
    """A11: the second net. No reachable tensor holds the raw sum."""
    model = Uses(use).double()
    if kept:
        model.odd.grad = torch.zeros_like(model.odd)
    with pytest.raises(PrivacyError, match="odd"):
        backward(model, torch.randn(3, 5, D, dtype=torch.float64))
    assert model.odd.grad is None or not model.odd.grad.any()


def test_healthy_model_keeps_the_gradient_it_had() -> None:
    model = Uses(lambda p, x: x @ p)
    model.odd.grad = before = torch.ones_like(model.odd)
    backward(model, torch.randn(3, 5, D))
    assert model.odd.grad is before
    assert bool((before == 1).all())


FLAT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda p, x: F.linear(x.flatten(0, 1), p).view_as(x),
    "matmul": lambda p, x: (x.flatten(0, 1) @ p).view_as(x),
    "elementwise": lambda p, x: (x.flatten(0, 1) * expand(p, x.shape[0] * x.shape[1])[:, 0]).view_as(x),
    "time first": lambda p, x: (x.transpose(0, 1) @ p).transpose(0, 1),
    "prompt": lambda p, x: x + expand(p, D).sum(0).sum(0),
    "table against one row": lambda p, x: x + F.embedding(torch.arange(D), p).sum(0),
    "positions of shape [1, T]": lambda p, x: x[:, :D] + F.embedding(torch.arange(D)[None], p),
}  # fmt: skip


@pytest.mark.parametrize("use", FLAT.values(), ids=FLAT.keys())
def test_lost_batch_axis_is_found_again_or_refused(
    use: Callable[[Tensor, Tensor], Tensor], same_form: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    """A2: flattened tokens, a prompt or positions outside the batch. One example would count many times."""
    taken = [exact(Uses(use).double(), torch.randn(B, 5, D, dtype=torch.float64), same_form) for B in (3, D, 5)]
    assert taken == [request.node.callspec.id not in ("elementwise", "time first", "prompt")] * 3


@pytest.mark.parametrize("layer", [nn.LayerNorm((3, 5, D)), nn.RMSNorm((3, 5, D))], ids=str)
def test_norm_that_reaches_over_the_batch_is_refused(layer: nn.Module) -> None:
    """A8: its scale has an entry for each example, and its statistics are the batch's."""
    with pytest.raises(PrivacyError, match="weight"):
        backward(layer, torch.randn(3, 5, D))


OF_ACTIVATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w, b: F.linear(x, w, b),
    "conv2d": lambda x, w, b: F.conv2d(x[:, None], w[:, None, :1, None], b),
    "layer_norm": lambda x, w, b: F.layer_norm(x, (D,), w[0], b),
    "addmm": lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w).view(x.shape),
}


@pytest.mark.parametrize("use", OF_ACTIVATIONS.values(), ids=OF_ACTIVATIONS.keys())
def test_layer_whose_weight_comes_from_activations_is_refused(use: Callable[..., Tensor]) -> None:
    """Its bias has a rule, which gives the weight no gradient: what made the weight would silently learn nothing."""
    grow = nn.Linear(D, D)

    class Grown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grow, self.bias = grow, nn.Parameter(torch.randn(D))

        def forward(self, x: Tensor) -> Tensor:
            return use(x, self.grow(x)[0, :D], self.bias)

    with pytest.raises(PrivacyError, match="computed from activations"):
        backward(Grown(), torch.randn(3, D, D))


def test_number_of_examples_is_read_off_the_models_input(same_form: Callable[..., None]) -> None:
    """A2: also where the caller does not give it."""
    model, x = Uses(lambda p, x: F.linear(x.flatten(0, 1), p)).double(), torch.randn(3, 5, D, dtype=torch.float64)
    with capture(model) as grads:
        model(x).sum().backward()
    truth = per_example_gradients(model, lambda m, x: m(x).sum()[None], x)
    same_form(grads["odd"], truth["odd"])


def test_embedding_options_that_couple_examples_are_refused() -> None:
    """A8: a row's gradient would be divided by its count in the batch, or the table rescaled on the way."""
    ids = torch.tensor([[0, 1], [1, 1]])
    for options in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}):
        model = nn.Embedding(3, D, **options)
        with pytest.raises(PrivacyError, match="weight"):
            backward(model, ids)
    backward(nn.Embedding(3, D), ids)


def test_parameter_of_another_class_and_a_second_capture_are_refused() -> None:
    class Special(nn.Parameter):
        pass

    model = nn.Linear(D, D)
    with capture(model), pytest.raises(PrivacyError, match="another capture"), capture(model):
        pass
    model.weight = Special(torch.zeros(D, D))
    with pytest.raises(PrivacyError, match="Special"), capture(model):
        pass


def test_unused_parameter_is_reported_missing() -> None:
    """A12."""
    model = nn.ModuleDict({"used": nn.Linear(D, D), "idle": nn.Linear(D, D)})
    with capture(model, examples=2) as grads:
        model["used"](torch.randn(2, D)).sum().backward()
    assert grads.missing == ("idle.weight", "idle.bias")
    with pytest.raises(KeyError, match=r"idle\.weight"):
        grads["idle.weight"]


def test_shapes_dtypes_and_detached_copies_need_no_rule() -> None:
    """The silent twin: looking at a parameter is not using it."""

    def use(p: Tensor, x: Tensor) -> Tensor:
        assert p.shape == (D, D)
        assert p.dim() == len(p) - 2 == 2
        assert p.dtype == p.detach().dtype == p.data.dtype
        assert p.is_leaf
        assert p.requires_grad
        with torch.no_grad():
            p.norm()
        return x @ p.to(x.dtype)  # the same dtype: hands back the parameter itself

    backward(Uses(use), torch.randn(3, 5, D))


@pytest.mark.parametrize("shape", [(1, D), (2, D), (4, D), (3, 1)])
def test_gradients_of_another_shape_never_pass_for_the_same(shape: tuple[int, ...]) -> None:
    """A4: a lost batch axis would be stretched over the examples, whose gradients may well be alike."""
    with pytest.raises(PrivacyError, match="axis is lost"):
        _compare({"odd": Dense(torch.ones(shape))}, {"odd": torch.ones(3, D)})
    _compare({"odd": Dense(torch.ones(3, D))}, {"odd": torch.ones(3, D)})

"""G1, A2, A3, A8, A11, A12: each detector on a planted fault, and silent on its healthy twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.engine.collect import collect
from dpft.engine.preflight import preflight
from dpft.errors import InputError, OneAtATime, PrivacyError
from dpft.per_sample import per_example_gradients
from dpft.per_sample.capture import expand

Loss = Callable[[nn.Module, Any], Tensor]
D = 4


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sin().add(0.3).square().flatten(1).sum(dim=1)


class Net(nn.Module):
    """A linear layer, something ``between``, and a head that starts at zero, as real ones do."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(D, D), nn.Linear(D, 3)
        self.between = between
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)))


class Buffered(Net):
    """Keeps a running mean of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(D))
        self.between = self.note

    def note(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen.add_(x.mean(dim=0).view(-1, D).mean(dim=0))
        return x.tanh()


class BatchNorm(Net):
    """By the function, where no module of that class can be found."""

    def __init__(self) -> None:
        super().__init__(lambda x: F.batch_norm(x.mT, None, None, training=True))


class Positions(nn.Module):
    """A position table, looked up for each example or once for all."""

    def __init__(self, per_example: bool) -> None:
        super().__init__()
        self.table, self.head, self.per_example = nn.Embedding(9, D), nn.Linear(D, 3), per_example

    def forward(self, x: Tensor) -> Tensor:
        where = torch.arange(x.shape[1])
        where = where.expand(x.shape[:2]) if self.per_example else where
        return self.head((x + self.table(where)).tanh())


class Prompt(nn.Module):
    """A soft prompt put before each example, with a batch axis or (the fault) without."""

    def __init__(self, length: int, per_example: bool) -> None:
        super().__init__()
        self.prompt, self.head = nn.Parameter(torch.randn(length, D)), nn.Linear(D, 3)
        self.per_example = per_example

    def forward(self, x: Tensor) -> Tensor:
        each = expand(self.prompt, x.shape[0])
        if not self.per_example:
            each = expand(self.prompt, self.prompt.shape[0])[0].expand(x.shape[0], -1, -1)
        return self.head(torch.cat([each, x], dim=1).cumsum(dim=1).tanh())


def contrastive(model: nn.Module, x: Tensor) -> Tensor:
    """In-batch negatives: one loss per example, each of which reads all the others."""
    z = model(x).flatten(1)
    return F.cross_entropy(z @ z.T, torch.arange(len(x)), reduction="none")


def by_batch_tokens(model: nn.Module, x: Tensor) -> Tensor:
    return squares(model, x) / x.shape[0]


def by_token(model: nn.Module, x: Tensor) -> Tensor:
    return squares(model, x).view(len(x), -1).sum(dim=1)


class Balance(nn.Module):
    """A small load-balancing term, as mixture models add it: the batch's mean gate."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.gate, self.weight = nn.Linear(D, 3), weight

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(-1)
        return p + self.weight * p * p.detach().mean(dim=0, keepdim=True)


class Idle(Net):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(D, D)


class TrainingOnly(Net):
    """Subtracts the batch mean, while training only, where an evaluation-mode check can't see it."""

    def __init__(self, per: int) -> None:
        super().__init__(lambda x: torch.tanh(x - x.mean(dim=per, keepdim=True)) if self.training else torch.tanh(x))


FAULTS: dict[str, tuple[Callable[[], nn.Module], Loss, tuple[int, ...]]] = {
    "batch mean subtracted": (lambda: Net(lambda x: (x - x.mean(dim=0)).tanh()), squares, (3, D)),
    "batch norm in the forward pass": (BatchNorm, squares, (3, D, D)),
    "batch mean subtracted in training only": (lambda: TrainingOnly(0), squares, (3, 5, D)),
    "running statistics": (Buffered, squares, (3, D)),
    "contrastive loss": (Net, contrastive, (3, D)),
    "divided by the batch": (Net, by_batch_tokens, (3, D)),
    "load balancing": (lambda: Balance(0.01), squares, (3, D)),
    "faint load balancing": (lambda: Balance(1e-3), squares, (3, D)),
    "unused parameter": (Idle, squares, (3, D)),
}  # fmt: skip
HEALTHY: dict[str, tuple[Callable[[], nn.Module], Loss, tuple[int, ...]]] = {
    "token mean subtracted": (lambda: Net(lambda x: (x - x.mean(dim=1, keepdim=True)).tanh()), squares, (3, 5, D)),
    "norm of each example": (lambda: Net(lambda x: F.layer_norm(x, (D,))), squares, (3, D)),
    "token mean subtracted in training only": (lambda: TrainingOnly(1), squares, (3, 5, D)),
    "zero head": (Net, squares, (3, D)),
    "no balancing": (lambda: Balance(0.0), squares, (3, D)),
    "positions": (lambda: Positions(True), squares, (3, 3, D)),
    "prompt as long as the batch": (lambda: Prompt(3, True), squares, (3, 5, D)),
    "positions without a batch axis": (lambda: Positions(False), squares, (3, 5, D)),
    "the same, as many positions as examples": (lambda: Positions(False), squares, (3, 3, D)),
    "tokens flattened": (lambda: Net(lambda x: x.flatten(0, 1)), by_token, (3, 5, D)),
    "one token": (Net, squares, (3, 1, D)),
    "two examples": (Net, squares, (2, 5, D)),
    "dropout": (lambda: Net(nn.Dropout(0.3)), squares, (3, 5, D)),
}  # fmt: skip


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize(("make", "loss", "shape"), FAULTS.values(), ids=FAULTS.keys())
def test_planted_fault_is_found(
    make: Callable[[], nn.Module], loss: Loss, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """A2, A3, A8, A11, A12."""
    model = make().to(dtype).train()
    with pytest.raises(PrivacyError):
        preflight(model, loss, torch.randn(shape, dtype=dtype))


@pytest.mark.parametrize(("make", "loss", "shape"), HEALTHY.values(), ids=HEALTHY.keys())
def test_healthy_twin_passes(
    make: Callable[[], nn.Module], loss: Loss, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    preflight(make().to(dtype).train(), loss, torch.randn(shape, dtype=dtype))


def test_message_names_the_parameter() -> None:
    with pytest.raises(PrivacyError, match=r"idle\.weight"):
        preflight(Idle(), squares, torch.randn(3, D))


@pytest.mark.parametrize("length", [2, 3])
def test_use_without_a_rule_runs_one_example_at_a_time_and_says_so(length: int) -> None:
    """A3: a prompt that somebody gave a batch axis of its own length. Exact, announced, with its cost."""
    model, batch = Prompt(length, False).double(), torch.randn(3, 5, D, dtype=torch.float64)
    with pytest.warns(OneAtATime, match=r"times the time of an ordinary step.*prompt"):
        uses = preflight(model, squares, batch)
    assert uses.alone
    grads, losses = collect(model, squares, batch, expected=3, uses=uses)
    torch.testing.assert_close(losses, squares(model, batch).detach())
    for name, truth in per_example_gradients(model, squares, batch).items():
        assert torch.equal(grads[name].dense(), truth)


class Attends(nn.Module):
    """torch's own attention on frozen inputs, alone or in its encoder layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return self.head(y)


class TimeFirst(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class Repeated(Net):
    """A row repeated for each example by a function that no rule is for."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(1, D))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.row.repeat_interleave(x.shape[0], dim=0).unsqueeze(1))


class Surprising(Net):
    """Fails in a way of its own where it is not given the number of examples that it expects."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * {1: 1.0, 2: 1.0, 3: 1.0}[x.shape[0]])


CAPTURE_FAILS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Attends(nn.MultiheadAttention(D, 2, batch_first=True)),
    "encoder layer": lambda: Attends(nn.TransformerEncoderLayer(D, 2, 8, batch_first=True, dropout=0.0)),
    "time first": TimeFirst,
    "repeat_interleave": Repeated,
    "an error of the model's own": Surprising,
}


@pytest.mark.parametrize("make", CAPTURE_FAILS.values(), ids=CAPTURE_FAILS.keys())
def test_whatever_fails_under_the_capture_runs_one_example_at_a_time(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, batch = make().double(), torch.randn(3, 5, D, dtype=torch.float64)
    with pytest.warns(OneAtATime, match=r"The reason: \w+"):
        uses = preflight(model, squares, batch)
    grads, _ = collect(model, squares, batch, expected=3, uses=uses)
    for name, truth in per_example_gradients(model, squares, batch).items():
        assert torch.equal(grads[name].dense(), truth)


def test_error_of_the_model_is_shown_as_it_is() -> None:
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise LookupError("my own")

    with pytest.raises(LookupError, match="my own"):
        preflight(Broken(), squares, torch.randn(3, D))


def test_example_that_reaches_no_parameter_counts_as_zero_one_at_a_time() -> None:
    """An empty text, say, while the model runs one example at a time."""

    def skipping(model: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([squares(model, e) if bool(e.any()) else torch.zeros(1).to(e) for e in x.split(1)])

    model, batch = Repeated().double(), torch.randn(3, 5, D, dtype=torch.float64)
    with pytest.warns(OneAtATime):
        uses = preflight(model, squares, batch)
    batch[1] = 0
    grads, losses = collect(model, skipping, batch, expected=3, uses=uses)
    assert losses[1] == 0
    assert not any(form.dense()[1].any() for form in grads.values())
    assert grads["head.weight"].dense().flatten(1).any(dim=1).tolist() == [True, False, True]
    nothing, losses = collect(model, skipping, torch.zeros(2, 5, D, dtype=torch.float64), expected=2, uses=uses)
    assert len(nothing) == 0
    assert losses.tolist() == [0, 0]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back_exactly(fails: bool) -> None:
    """A11: parameters bit for bit, modes module by module, gradients and torch's random state untouched."""
    model = Net(lambda x: x - x.mean(dim=0)) if fails else Net()
    model.train()
    model.body.eval()
    model.body.weight.grad = kept = torch.full((D, D), 3.0)
    with torch.no_grad():
        model.body.weight[0, 0] = 1e-30  # adding and taking away again would lose it
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch, state = torch.randn(3, D), torch.get_rng_state()
    if fails:
        with pytest.raises(PrivacyError):
            preflight(model, squares, batch)
    else:
        preflight(model, squares, batch)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.training
    assert model.head.training
    assert not model.body.training
    assert model.body.weight.grad is kept
    assert bool((kept == 3).all())
    assert model.head.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_scalar_parameter_is_proved_like_any_other() -> None:
    class Gated(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.tensor(0.0))  # ReZero
            self.between = lambda x: x.tanh() * self.gate

    preflight(Gated(), squares, torch.randn(3, D))


def test_one_example_proves_nothing() -> None:
    with pytest.raises(InputError, match="at least 2"):
        preflight(Net(), squares, torch.randn(1, D))


WRONG_LOSSES: dict[str, Loss] = {
    "mean": lambda m, x: m(x).square().mean(),
    "one a token": lambda m, x: m(x).square(),
    "one too many axes": lambda m, x: m(x).square().sum(dim=1, keepdim=True),
    "one example short": lambda m, x: m(x).square().sum(dim=1)[1:],
    "a number": lambda m, x: 1.0,  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize("loss", WRONG_LOSSES.values(), ids=WRONG_LOSSES.keys())
def test_loss_that_is_not_one_number_an_example_is_refused(loss: Loss) -> None:
    """A4."""
    model = Net()
    with pytest.raises(PrivacyError, match=r"one loss per example, shape \(3,\)"):
        preflight(model, loss, torch.randn(3, D))
    with pytest.raises(PrivacyError, match=r"one loss per example, shape \(3,\)"):
        collect(model, loss, torch.randn(3, D), expected=3)
    assert all(p.grad is None for p in model.parameters())


def test_collate_that_loses_an_example_is_refused() -> None:
    """A2, D3."""
    with pytest.raises(PrivacyError, match="4 examples"):
        collect(Net(), squares, torch.randn(3, D), expected=4)
    with pytest.raises(InputError, match="examples first"):
        collect(Net(), squares, {"x": torch.randn(3, D), "scale": torch.tensor(1.0)}, expected=3)


def test_collect_gives_losses_off_the_graph() -> None:
    grads, losses = collect(Net(), squares, torch.randn(3, D), expected=3)
    assert losses.shape == (3,)
    assert not losses.requires_grad
    assert all(not grads[name].dense().requires_grad for name in grads)

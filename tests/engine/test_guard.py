"""A8, A11, A12: what trains is what was declared, all of it, and nothing else moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpft.engine.guard import Guard, frozen_digest
from dpft.errors import InputError, PrivacyError, TrainingError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    return model


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)


def moved(model: nn.Module, names: list[str]) -> None:
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).add_(1.0)


def test_healthy_step_is_silent() -> None:
    model = net()
    guard = Guard(model, sgd(model))
    moved(model, list(guard.params))
    guard.check_unchanged_set()
    guard.check_finite()
    guard.check_first_step()
    guard.check_frozen()
    assert guard.coordinates == 3 + 3 + 6 + 2


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.SyncBatchNorm(3)])
def test_batch_norm_that_trains_is_refused_and_in_eval_mode_is_not(norm: nn.Module) -> None:
    """A8."""
    model = nn.Sequential(nn.Linear(3, 3), norm)
    with pytest.raises(PrivacyError, match=r"^1 computes statistics over the batch"):
        Guard(model.train(), sgd(model))
    Guard(model.eval(), sgd(model))


def test_first_step_that_leaves_a_tensor_where_it_was_is_refused() -> None:
    """A12."""
    model = net()
    guard = Guard(model, sgd(model))
    moved(model, ["1.weight", "1.bias", "2.weight"])
    with pytest.raises(PrivacyError, match=r"2\.bias did not"):
        guard.check_first_step()


@pytest.mark.parametrize("what", ["frozen parameter", "buffer"])
def test_anything_else_that_moves_is_found(what: str) -> None:
    """A11."""
    model = net()
    model.register_buffer("count", torch.zeros(1))
    guard = Guard(model, sgd(model))
    guard.check_frozen()
    with torch.no_grad():
        (model[0].weight[0, 0] if what == "frozen parameter" else model.get_buffer("count")).add_(1e-3)
    with pytest.raises(PrivacyError, match="changed during training"):
        guard.check_frozen()


def test_change_of_the_trainable_set_is_found() -> None:
    """A11, A12: replaced, frozen or thawed after the start."""
    for change in ("replaced", "frozen", "thawed"):
        model = net()
        guard = Guard(model, sgd(model))
        if change == "replaced":
            model[2].weight = nn.Parameter(model[2].weight.detach().clone())
        else:
            model[2 if change == "frozen" else 0].requires_grad_(change == "thawed")
        with pytest.raises(PrivacyError, match="trainable set changed"):
            guard.check_unchanged_set()


def test_optimizer_must_hold_exactly_what_trains() -> None:
    """A11."""
    model, other = net(), nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"lacks 1\.weight"):
        Guard(model, torch.optim.SGD(model[2].parameters(), 0.1))
    with pytest.raises(InputError, match="found others"):
        Guard(model, torch.optim.SGD([*(p for p in model.parameters() if p.requires_grad), *other.parameters()], 0.1))
    Guard(model, torch.optim.SGD(model.parameters(), 0.1))  # frozen ones get no gradient
    with pytest.raises(InputError, match="LBFGS"):
        Guard(model, torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad]))
    with pytest.raises(InputError, match="found none"):
        Guard(model.requires_grad_(False), torch.optim.SGD(model.parameters(), 0.1))


def test_non_finite_weights_end_the_run() -> None:
    """G4."""
    model = net()
    guard = Guard(model, sgd(model))
    guard.check_finite()
    with torch.no_grad():
        model[2].bias[1] = float("nan")
    with pytest.raises(TrainingError, match=r"2\.bias"):
        guard.check_finite()


def test_digest_sees_every_dtype_shape_and_single_bit() -> None:
    model = nn.Module()
    for i, dtype in enumerate((torch.bool, torch.int64, torch.bfloat16, torch.float16, torch.float64)):
        model.register_buffer(f"b{i}", torch.ones(2, 3, dtype=dtype).T)
    model.register_buffer("scalar", torch.tensor(1.0))
    model.register_buffer("empty", torch.zeros(0))
    before = frozen_digest(model)
    assert frozen_digest(model) == before
    for name, b in list(model.named_buffers()):
        if b.numel():
            old = b.clone()
            b.view(-1)[:1].zero_() if b.is_contiguous() else b[0, 0].zero_()
            assert frozen_digest(model) != before, name
            b.copy_(old)
    assert frozen_digest(model) == before

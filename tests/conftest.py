"""What every test may use. Torch is imported only by the tests that ask for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dpft.per_sample import Form, Grads

# On tensors this small a second thread costs more than it saves: up to a hundredfold on a busy machine.
# Read when torch is first imported, which is later.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# float64 has 1.1e-16 a rounding; some 1e4 of them in a chain and a condition number of 1e2 leave 1e-10.
RELATIVE = 1e-9


@pytest.fixture
def close() -> Callable[..., None]:
    """``close(found, expected)``: equal up to RELATIVE of the expected norm (zero must be zero to 1e-12)."""

    def check(found: Tensor, expected: Tensor, relative: float = RELATIVE) -> None:
        assert found.shape == expected.shape
        error = (found.double() - expected.double()).norm()
        assert error <= relative * expected.double().norm() + 1e-12, f"off by {float(error)}"

    return check


@pytest.fixture
def same_form(close: Callable[..., None]) -> Callable[..., None]:
    """``same_form(form, truth)``: dense gradients, squared norms and a weighted sum all equal the truth's."""
    import torch

    def check(form: Form, truth: Tensor, relative: float = RELATIVE) -> None:
        B = truth.shape[0]
        assert form.batch == B
        close(form.dense(), truth, relative)
        sq = truth.double().reshape(B, torch.Size(truth.shape[1:]).numel()).square().sum(dim=1)
        close(form.sq_norm(), sq, 2 * relative)
        c = torch.linspace(-1.5, 2.0, B, dtype=torch.float64)
        close(form.weighted_sum(c), torch.einsum("b,b...->...", c, truth.double()), relative)

    return check


@pytest.fixture
def agree(same_form: Callable[..., None]) -> Callable[..., Grads]:
    """``agree(model, loss, batch)``: every captured gradient equals that of one example at a time."""
    from dpft.per_sample import capture, per_example_gradients
    from dpft.per_sample.batches import examples_in

    def check(model: nn.Module, loss: Callable[[Any, Any], Tensor], batch: Any) -> Grads:
        with capture(model, examples=examples_in(batch)) as grads:
            loss(model, batch).sum().backward()
        truth: Mapping[str, Tensor] = per_example_gradients(model, loss, batch)
        assert grads.missing == ()
        assert list(truth) == sorted(grads, key=list(truth).index)
        for name, g in truth.items():
            same_form(grads[name], g)
        assert all(p.grad is None for p in model.parameters())
        return grads

    return check

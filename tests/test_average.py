"""Averages of the steps' values: means of known values, the same after a resumption, and said to be post-processing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dpft.average import Average, post_processing
from dpft.config import OptimizerSection
from dpft.engine.checkpoint import Checkpoints

VALUES = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)


def walk(average: Average, p: nn.Parameter, steps: range) -> None:
    """The values 1 to 10, one a step."""
    for done in steps:
        with torch.no_grad():
            p.copy_(torch.from_numpy(VALUES[done - 1]))
        average.update(done)


def after(section: OptimizerSection) -> np.ndarray:
    p = nn.Parameter(torch.zeros(3))
    average = Average(section, {"p": p}, 10)
    walk(average, p, range(1, 11))
    average.apply()
    return p.detach().numpy()


@pytest.mark.parametrize(("share", "kept"), [(1.0, 10), (0.25, 3), (0.3, 3), (1e-9, 1)])
def test_the_tail_is_the_mean_of_the_last_values(share: float, kept: int) -> None:
    """A quarter of 10 steps is rounded up to 3."""
    found = after(OptimizerSection(average="tail", average_tail=share))
    np.testing.assert_allclose(found, VALUES[-kept:].mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.99])
def test_ema_weighs_by_powers_of_its_decay(decay: float) -> None:
    powers = decay ** np.arange(9, -1, -1)
    expected = (powers[:, None] * VALUES).sum(axis=0) / powers.sum()
    found = after(OptimizerSection(average="ema", average_decay=decay))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_none_keeps_nothing_and_changes_nothing() -> None:
    assert np.array_equal(after(OptimizerSection()), VALUES[-1])
    assert Average(OptimizerSection(), {"p": nn.Parameter(torch.zeros(3))}, 10).tensors == {}


@pytest.mark.parametrize("kind", ["ema", "tail"])
@pytest.mark.parametrize("stop", [4, 9])
def test_a_resumed_average_is_that_of_one_session(kind: Any, stop: int, tmp_path: Path) -> None:
    """E2: through a checkpoint; training itself goes on from the raw values."""
    section, model = OptimizerSection(average=kind), nn.Linear(3, 1, bias=False)
    checkpoints, averages = [], []
    for _ in range(2):
        averages.append(Average(section, {"p": model.weight}, 10))
        checkpoints.append(Checkpoints(tmp_path, averages[-1].tensors))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    row = nn.Parameter(model.weight.detach()[0])  # shares its memory
    walk(averages[0], row, range(1, stop + 1))
    checkpoints[0].save(model, optimizer, stop)
    with torch.no_grad():
        model.weight.zero_()
    assert checkpoints[1].restore(model, optimizer) == (stop, None)
    assert np.array_equal(model.weight.detach()[0].numpy(), VALUES[stop - 1])
    walk(averages[1], row, range(stop + 1, 11))
    averages[1].apply()
    assert np.array_equal(model.weight.detach()[0].numpy(), after(section))


def test_a_checkpoint_without_the_average_is_not_taken_for_one_with_it(tmp_path: Path) -> None:
    """E2."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    Checkpoints(tmp_path).save(model, optimizer, 3)
    average = Average(OptimizerSection(average="ema"), dict(model.named_parameters()), 10)
    assert Checkpoints(tmp_path, average.tensors).restore(model, optimizer)[0] == 0
    assert Checkpoints(tmp_path).restore(model, optimizer) == (3, None)


def test_the_statement_says_that_an_average_and_a_scale_are_free() -> None:
    """F5."""
    assert post_processing(OptimizerSection()) == []
    scale, average = post_processing(OptimizerSection(scale="privatised", average="tail"))
    assert "last 25 % of the steps" in average
    assert "averaging costs no privacy" in average
    assert "earlier noised gradients alone" in scale

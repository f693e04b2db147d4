"""DP-AdamBC: torch's Adam without noise, and the noise's variance taken out of the second moment with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dpft.engine.adam_bc import AdamBC


def weights(size: int = 6) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, size, dtype=torch.float64))


def feed(p: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: torch.Tensor) -> None:
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_without_noise_it_is_torchs_adam(decay: float) -> None:
    one, other = weights(), weights()
    settings = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": decay}
    gradients = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    feed(one, AdamBC([one], **settings, noise_std=0.0), gradients)
    feed(other, torch.optim.Adam([other], **settings), gradients)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_few_steps_are_their_closed_form() -> None:
    """One coordinate above the floor, one below it."""
    p, noise = nn.Parameter(torch.zeros(2, dtype=torch.float64)), 0.5
    gradients = torch.tensor([[3.0, 0.4], [2.0, -0.3], [-1.0, 0.1]], dtype=torch.float64)
    feed(p, AdamBC([p], 0.1, (0.9, 0.99), 1e-3, noise_std=noise, noise_floor=0.5), gradients)
    expected = []
    for g in gradients.T.tolist():
        m = v = x = 0.0
        for t, value in enumerate(g, start=1):
            m, v = 0.9 * m + 0.1 * value, 0.99 * v + 0.01 * value**2
            left = max(v / (1 - 0.99**t) - noise**2, (0.5 * noise) ** 2)
            x -= 0.1 * m / (1 - 0.9**t) / (math.sqrt(left) + 1e-3)
        expected.append(x)
    assert p.tolist() == pytest.approx(expected, rel=1e-12)


def test_on_noise_alone_the_second_moment_is_about_zero_where_adams_is_the_noise() -> None:
    """4,000 coordinates, 300 steps: the mean estimate has a standard error of noise^2 sqrt(2 / 1.2e6) = 0.0013."""
    noise, generator = 0.7, torch.Generator().manual_seed(1)
    p, q = nn.Parameter(torch.zeros(4000)), nn.Parameter(torch.zeros(4000))
    ours, adam = AdamBC([p], noise_std=noise), torch.optim.Adam([q])
    gradients = noise * torch.randn(300, 4000, generator=generator)
    feed(p, ours, gradients)
    feed(q, adam, gradients)
    theirs = adam.state[q]["exp_avg_sq"] / (1 - 0.999**300)
    assert float(theirs.mean()) == pytest.approx(noise**2, rel=0.01)
    assert abs(float(ours.second_moment(p, ours.param_groups[0]).mean())) < 0.01 * noise**2

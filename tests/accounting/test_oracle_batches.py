"""Shuffled batches and banded noise: exact small runs by quadrature, and the published lower bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dpft_accounting import BandedMF, Gaussian, PoissonGaussian, ShuffledGaussian, Unit, delta, epsilon
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_ndtr

Array = NDArray[np.float64]

EXAMPLE = Unit("example")
ZERO_OUT, REPLACE = Unit("example", "zero_out", 10**5), Unit("example", "replace", 10**5)
few = settings(max_examples=25, deadline=None, derandomize=True)


def shuffled_lower(eps: float, steps: int, sigma: float) -> float:
    """Chua et al. 2024 (arXiv 2403.17673): δ >= P₂(max > C) − e^ε·P₁(max > C), one epoch, for the best C."""
    c = np.linspace(-2, 3 + 9 * sigma, 4001)

    def above(mean: float) -> Array:
        found: Array = -np.expm1(log_ndtr((c - mean) / sigma) + (steps - 1) * log_ndtr(c / sigma))
        return found

    return float(np.max(above(2.0) - math.exp(eps) * above(1.0)))


@few
@given(st.integers(1, 5000), st.floats(0.3, 5), st.floats(0, 12))
def test_one_epoch_is_never_below_the_lower_bound(steps: int, sigma: float, eps: float) -> None:
    """E6: for any number of batches, at any ε."""
    assert delta(ShuffledGaussian(1, sigma), ZERO_OUT, eps).upper >= shuffled_lower(eps, steps, sigma) - 1e-13


def test_poisson_would_be_below_the_lower_bound() -> None:
    """The fault that this is about: the amplification of Poisson batches claimed for shuffled ones. Known figures."""
    for steps, sigma, d, poisson, shuffled in ((66, 0.7, 7.4e-6, 2.94, 6.75), (1000, 0.5, 1e-6, 4.24, 11.00)):
        claimed = epsilon(PoissonGaussian(1 / steps, sigma, steps), ZERO_OUT, d).upper
        assert claimed == pytest.approx(poisson, rel=3e-3)
        assert shuffled_lower(claimed, steps, sigma) > 10 * d
        ours = epsilon(ShuffledGaussian(1, sigma), ZERO_OUT, d).upper
        assert ours == pytest.approx(shuffled, abs=0.01)
        assert shuffled_lower(ours, steps, sigma) <= d <= shuffled_lower(ours * 0.995, steps, sigma)


@few
@given(st.integers(0, 1000), st.floats(0.1, 50))
def test_epochs_compose_as_full_batches(epochs: int, sigma: float) -> None:
    """E6: μ = sqrt(epochs)/σ under zero_out, twice that under replace."""
    mechanism = ShuffledGaussian(epochs, sigma)
    assert epsilon(mechanism, ZERO_OUT, 1e-7) == epsilon(Gaussian(sigma, epochs), EXAMPLE, 1e-7)
    assert epsilon(mechanism, REPLACE, 1e-7) == epsilon(Gaussian(sigma / 2, epochs), EXAMPLE, 1e-7)


def normal(x: Array, y: Array, sigma: float, at: tuple[float, float]) -> Array:
    """Density of two independent Gaussians on the grid x × y."""
    first, second = (np.exp(-(((v - m) / sigma) ** 2) / 2) for v, m in ((x, at[0]), (y, at[1])))
    return np.outer(first, second) / (2 * math.pi * sigma * sigma)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_two_shuffled_batches_of_one_epoch_are_bounded(sigma: float) -> None:
    """E6: exact, in the plane: the unit falls into either batch, the other unit into the other, gradient −1, 0, 1."""
    x = np.linspace(-2 - 7 * sigma, 2 + 7 * sigma, 701)
    area = (x[1] - x[0]) ** 2
    for other in (-1.0, 0.0, 1.0):
        there = (normal(x, x, sigma, (1.0, other)) + normal(x, x, sigma, (other, 1.0))) / 2
        for gradient, unit in ((0.0, ZERO_OUT), (-1.0, REPLACE)):
            blank = (normal(x, x, sigma, (gradient, other)) + normal(x, x, sigma, (other, gradient))) / 2
            for eps in (0.0, 0.3, 1.0, 3.0):
                found = delta(ShuffledGaussian(1, sigma), unit, eps).upper
                for p, q in ((there, blank), (blank, there)):
                    exact = float(np.maximum(p - math.exp(eps) * q, 0).sum()) * area
                    assert found >= exact * (1 - 1e-4) - 1e-9


def stands_for(m: BandedMF) -> PoissonGaussian:
    """Each unit is in one group, and its group's turn comes at every ``bands``-th step."""
    turns = math.ceil(m.steps / m.bands)
    return PoissonGaussian(m.bands * m.q, m.sigma, turns)


@few
@given(st.integers(1, 50), st.floats(0.01, 1), st.floats(0.5, 8), st.integers(0, 400))
def test_banded_noise_is_the_poisson_mechanism_it_stands_for(
    bands: int, share: float, sigma: float, steps: int
) -> None:
    """Choquette-Choo et al. 2023 (arXiv 2306.08153): rate bands·q, ceil(steps/bands) turns."""
    mechanism = BandedMF(share / bands, sigma, steps, bands)
    assert epsilon(mechanism, EXAMPLE, 1e-6) == epsilon(stands_for(mechanism), EXAMPLE, 1e-6)


@pytest.mark.parametrize(("q", "sigma"), [(0.1, 1.0), (0.3, 0.6), (0.5, 2.0)])
def test_two_banded_steps_are_bounded_by_their_exact_output(q: float, sigma: float) -> None:
    """E6: S·x + z in the plane, S lower triangular with columns of norm one; the unit's own coin chooses its group."""
    head, tail = 1 / math.hypot(1, 0.5), 0.5 / math.hypot(1, 0.5)  # the first coefficients of (1 − x)^(−1/2)
    x = np.linspace(-7 * sigma, 1 + 7 * sigma, 801)
    area = (x[1] - x[0]) ** 2
    none = normal(x, x, sigma, (0.0, 0.0))
    groups = [(1 - 2 * q) * none + 2 * q * normal(x, x, sigma, column) for column in ((head, tail), (0.0, head))]
    groups.append((groups[0] + groups[1]) / 2)  # the group is secret; a known one is the worse case
    for eps in (0.0, 0.2, 0.5, 1.0, 2.0):
        found = delta(BandedMF(q, sigma, 2, 2), EXAMPLE, eps).upper
        exact = [
            float(np.maximum(a - math.exp(eps) * b, 0).sum()) * area
            for group in groups
            for a, b in ((group, none), (none, group))
        ]
        assert found >= max(exact) * (1 - 1e-4) - 1e-9
        assert found <= max(exact) * 1.01 + 1e-6  # the first column has the full norm

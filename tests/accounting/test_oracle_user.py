"""User-level and other sampled steps, composed, between two bounds that owe nothing to connecting the dots.

Privacy buckets (Meiser & Mohammadi 2018): cut the axis into many small cells, round the loss of each down to a grid
for a lower bound on δ after any number of steps, and up for an upper one; convolve plainly.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from dpft_accounting import Gaussian, Mechanism, PoissonGaussian, Unit, UserELS, delta, epsilon
from dpft_accounting.losses import TooLarge
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.special import logsumexp, ndtr
from scipy.stats import binom

Array = NDArray[np.float64]
Mixture = list[tuple[float, float]]

EXAMPLE, USER = Unit("example"), Unit("user")
CELLS = 200_000
NOTHING: Mixture = [(1.0, 0.0)]


def binomial(q: float, trials: int) -> Mixture:
    return [(float(binom.pmf(k, trials, q)), float(k)) for k in range(trials + 1)]


def buckets(p: Mixture, q: Mixture, sigma: float, width: float) -> tuple[tuple[int, Array], tuple[int, Array]]:
    """The loss ln(P/Q) under P, rounded down and up to multiples of ``width``; what lies outside is cut off."""
    means = [m for _, m in (*p, *q)]
    x = np.linspace(min(means) - 8 * sigma, max(means) + 8 * sigma, CELLS + 1)
    mass = np.diff(sum(w * ndtr((x - m) / sigma) for w, m in p))
    log_p, log_q = (logsumexp([math.log(w) - ((x - m) / sigma) ** 2 / 2 for w, m in side], axis=0) for side in (p, q))
    loss = log_p - log_q  # monotone, so the ends of a cell have its least and its greatest
    found = []
    for rounded in (
        np.floor(np.minimum(loss[:-1], loss[1:]) / width),
        np.ceil(np.maximum(loss[:-1], loss[1:]) / width),
    ):
        low = int(rounded.min())
        found.append((low, np.bincount((rounded - low).astype(int), weights=np.maximum(mass, 0.0))))
    return found[0], found[1]


def composed(side: tuple[int, Array], steps: int, eps: Array, width: float) -> Array:
    """δ after ``steps`` convolutions, one squaring at a time."""
    low, mass = side
    total, start, square, square_low = np.ones(1), 0, mass, low
    for bit in bin(steps)[:1:-1]:
        if bit == "1":
            total, start = fftconvolve(total, square), start + square_low
        square, square_low = fftconvolve(square, square), 2 * square_low
    values = (start + np.arange(len(total))) * width
    return np.array([(total * np.maximum(-np.expm1(np.minimum(e - values, 0.0)), 0)).sum() for e in eps])


def sandwich(p: Mixture, q: Mixture, sigma: float, steps: int, eps: Array, width: float) -> tuple[Array, Array]:
    """Bounds on the larger δ of both directions; 1e-13 for the cells and the FFTs."""
    sides = [buckets(a, b, sigma, width) for a, b in ((p, q), (q, p))]
    lower, upper = (np.max([composed(side[i], steps, eps, width) for side in sides], axis=0) for i in (0, 1))
    return lower - 1e-13 * steps, upper + steps * 1e-14


def is_between(mechanism: Mechanism, unit: Unit, p: Mixture, q: Mixture, sigma: float, width: float) -> None:
    eps = np.array([0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0])
    lower, upper = sandwich(p, q, sigma, mechanism.planned, eps, width)
    for e, least, most in zip(eps, lower, upper, strict=True):
        if most < 1e-8:
            continue
        found = delta(mechanism, unit, float(e), method="pld").upper
        assert least <= found <= most * (1 + 1e-3) + 1e-11
        assert most <= least * 1.2 + 1e-9  # or the two say nothing


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "trials", "width"),
    [
        (0.2, 2.0, 1, 4, 1e-4),
        (0.2, 2.0, 2, 4, 1e-4),
        (0.01, 4.0, 30, 16, 1e-4),
        (0.05, 3.0, 60, 5, 2e-4),
        (0.9, 8.0, 3, 6, 1e-3),
        (0.02, 2.0, 8, 12, 1e-3),
    ],
)
def test_a_composed_user_is_between_its_buckets(q: float, sigma: float, steps: int, trials: int, width: float) -> None:
    """E6: example-level sampling for users, one step to sixty."""
    is_between(UserELS(q, sigma, steps, trials), USER, binomial(q, trials), NOTHING, sigma, width)


@pytest.mark.parametrize(("q", "sigma", "steps", "width"), [(0.05, 0.9, 20, 5e-4), (0.3, 2.0, 20, 2e-4)])
def test_composed_poisson_steps_are_between_their_buckets(q: float, sigma: float, steps: int, width: float) -> None:
    """E4, E6: the same oracle for add/remove and for replace, where the sum moves by twice the clip norm."""
    mixed = [(1 - q, 0.0), (q, 1.0)]
    is_between(PoissonGaussian(q, sigma, steps), EXAMPLE, mixed, NOTHING, sigma, width)
    opposite = [(1 - q, 0.0), (q, -1.0)]
    is_between(PoissonGaussian(q, sigma, steps), Unit("x", "replace", 10**5), mixed, opposite, sigma, width)


def test_the_buckets_know_the_closed_form() -> None:
    """The oracle itself: sixteen Gaussian steps are one of a quarter of the noise."""
    eps = np.array([0.0, 0.5, 1.0, 3.0])
    lower, upper = sandwich([(1.0, 1.0)], NOTHING, 5.0, 16, eps, 1e-4)
    closed = [delta(Gaussian(5.0, 16), EXAMPLE, float(e)).upper for e in eps]
    assert np.all((lower <= closed) & (np.array(closed) <= upper * (1 + 1e-8)))
    assert upper == pytest.approx(lower, rel=0.02)


few = settings(max_examples=12, deadline=None, derandomize=True)
rates = st.floats(-3, -0.3).map(lambda v: 10**v)


@few
@given(rates, st.floats(1, 8), st.integers(1, 300), st.integers(2, 20))
def test_a_user_costs_between_one_example_and_a_block(q: float, sigma: float, steps: int, k: int) -> None:
    """E6: no more than all k examples moving as one whenever any is drawn, no less than one of them alone."""
    found = epsilon(UserELS(q, sigma * k**0.5, steps, k), USER, 1e-6).upper
    block = epsilon(PoissonGaussian(-math.expm1(k * math.log1p(-q)), sigma / k**0.5, steps), EXAMPLE, 1e-6).upper
    one = epsilon(PoissonGaussian(q, sigma * k**0.5, steps), EXAMPLE, 1e-6).upper
    assert one * (1 - 1e-3) <= found <= block * (1 + 2e-3) + 1e-9


@few
@given(rates, st.floats(0.6, 5), st.integers(1, 500))
def test_a_user_of_one_example_is_an_example(q: float, sigma: float, steps: int) -> None:
    """E6."""
    user, example = UserELS(q, sigma, steps, 1), PoissonGaussian(q, sigma, steps)
    assert epsilon(user, USER, 1e-6) == epsilon(example, EXAMPLE, 1e-6)


@few
@given(st.floats(0.5, 50), st.integers(1, 500), st.integers(1, 64))
def test_a_user_whose_examples_are_always_drawn_is_one_larger_gradient(sigma: float, steps: int, k: int) -> None:
    """E6: q = 1 is a full batch of sensitivity k."""
    user = UserELS(1.0, sigma, steps, k)
    assert epsilon(user, USER, 1e-6).upper == pytest.approx(epsilon(Gaussian(sigma / k, steps), USER, 1e-6).upper)


def test_what_a_block_of_sensitivity_k_would_have_cost() -> None:
    """Known figures: 9.36 in place of 1.42 for four examples, 1242 in place of 6.65 for sixteen; 37.8 for 64."""
    for k, as_block, known in ((4, 9.36, 1.42), (16, 1242, 6.65), (64, None, 37.8)):
        assert epsilon(UserELS(0.01, 4.0, 1000, k), USER, 1e-6).upper == pytest.approx(known, rel=3e-3)
        if as_block is not None:
            block = PoissonGaussian(-math.expm1(k * math.log1p(-0.01)), 4.0 / k, 1000)
            assert epsilon(block, EXAMPLE, 1e-6).upper == pytest.approx(as_block, rel=3e-3)
    one = epsilon(PoissonGaussian(0.01, 4.0, 1000), EXAMPLE, 1e-6, method="prv")
    assert one.lower <= epsilon(UserELS(0.01, 4.0, 1000, 1), USER, 1e-6).upper <= one.upper


@pytest.mark.parametrize("trials", [10**6, 10**9, 10**15])
def test_a_user_of_a_billion_examples_is_answered_or_refused_and_never_listed(trials: int) -> None:
    """E6: rare sampling leaves a Poisson number of them; often sampled ones are too much for any grid."""
    rare = epsilon(UserELS(0.1 / trials, 2.0, 3, trials), USER, 1e-6).upper
    few = epsilon(UserELS(1e-3, 2.0, 3, 100), USER, 1e-6).upper
    assert few < rare < few * 1.01  # Binomial(n, m/n) grows towards Poisson(m), and 1e-3 is almost there
    for sigma in (1.0, 1e-3 * trials):
        with pytest.raises(TooLarge):
            epsilon(UserELS(0.5, sigma, 3, trials), USER, 1e-6)

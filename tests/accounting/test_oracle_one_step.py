"""One-step losses against Gauss-Legendre quadrature of the divergence, to nine digits; compositions by another PLD.

Connecting the dots (Doroshenko et al. 2022, arXiv 2207.04380) promises three things, each tested as it is written: at
grid points δ(ε) is exact, between them it is the line in e^ε, and it is never below the truth.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from dpft_accounting import mixtures
from dpft_accounting.losses import Loss, Pair
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import binom

Array = NDArray[np.float64]
Mixture = tuple[tuple[float, float], ...]  # (weight, mean)

NOTHING: Mixture = ((1.0, 0.0),)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
GRID_POINTS = (0, 1, 2, 5, 20, 100, 400)


def poisson(q: float, mean: float = 1.0) -> Mixture:
    return tuple((w, m) for w, m in ((1 - q, 0.0), (q, mean)) if w)


def binomial(q: float, trials: int) -> Mixture:
    return tuple((float(binom.pmf(k, trials, q)), float(k)) for k in range(trials + 1) if binom.pmf(k, trials, q) > 0)


def log_density(mixture: Mixture, sigma: float, x: Array) -> Array:
    terms = [math.log(w) - ((x - m) / sigma) ** 2 / 2 for w, m in mixture]
    found: Array = logsumexp(terms, axis=0) - math.log(sigma * math.sqrt(2 * math.pi))
    return found


def exact(p: Mixture, q: Mixture, sigma: float, eps: float) -> float:
    """∫ (P − e^ε·Q)₊ where ln(P/Q) is monotone: panels of a quarter σ away from the only kink. No cdf is used."""
    means = [m for _, m in (*p, *q)]
    low, high = min(means) - 13 * sigma, max(means) + 13 * sigma

    def excess(x: float) -> float:
        at = np.array([x])
        return float((log_density(p, sigma, at) - log_density(q, sigma, at))[0]) - eps

    start, end = excess(low), excess(high)
    if start < 0 and end < 0:
        return 0.0
    kink = brentq(excess, low, high, xtol=1e-14 * sigma, rtol=8.9e-16) if start * end < 0 else None
    a, b = (low, high) if kink is None else (kink, high) if end > 0 else (low, kink)
    panels = np.linspace(a, b, math.ceil(4 * (b - a) / sigma) + 1)
    half = np.diff(panels) / 2
    x = (panels[:-1] + half)[:, None] + half[:, None] * NODES
    loss = log_density(p, sigma, x.ravel()) - log_density(q, sigma, x.ravel())
    value = np.exp(log_density(p, sigma, x.ravel())) * -np.expm1(np.minimum(eps - loss, 0.0))
    return float((value.reshape(x.shape) * WEIGHTS * half[:, None]).sum())


def is_connected(loss: Loss, p: Mixture, q: Mixture, sigma: float, points: tuple[int, ...] = GRID_POINTS) -> None:
    """Exact at grid points; between them the line in e^ε through exact values, which is above the truth."""
    dx = loss.dx
    for k in points:
        ends = [exact(p, q, sigma, j * dx) for j in (k, k + 1)]
        found = float(loss.delta(np.array([k * dx]))[0])
        assert found == pytest.approx(ends[0], rel=1e-9, abs=1e-14)
        for part in (0.01, 0.37, 0.5, 0.99):
            eps = (k + part) * dx
            share = math.expm1(part * dx) / math.expm1(dx)
            between = float(loss.delta(np.array([eps]))[0])
            assert between == pytest.approx((1 - share) * ends[0] + share * ends[1], rel=1e-9, abs=1e-14)
            assert between >= exact(p, q, sigma, eps) - 1e-12


def both_are_connected(pair: Pair, p: Mixture, q: Mixture, sigma: float) -> None:
    is_connected(pair.remove, p, q, sigma)
    is_connected(pair.add, q, p, sigma)


@pytest.mark.parametrize(
    ("q", "sigma", "dx"),
    [
        (1e-5, 0.5, 1e-3),
        (1e-5, 50.0, 1e-4),  # the whole loss is smaller than one cell
        (1e-5, 0.1, 1e-2),
        (0.3, 0.1, 1e-2),
        (0.01, 0.7, 1e-3),
        (0.01, 0.7, 0.037),
        (0.5, 50.0, 1e-5),
        (0.999999, 1.0, 1e-3),
    ],
)
def test_a_poisson_step_is_the_quadrature(q: float, sigma: float, dx: float) -> None:
    """E4."""
    both_are_connected(mixtures.poisson(q, sigma, dx), poisson(q), NOTHING, sigma)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.floats(-5, 0).map(lambda v: 10**v), st.floats(-1, 1.7).map(lambda v: 10**v), st.floats(-3.5, -1))
@example(1.0, 0.1, -2)
def test_any_poisson_step_is_the_quadrature(q: float, sigma: float, log_dx: float) -> None:
    """E4."""
    both_are_connected(mixtures.poisson(q, sigma, 10**log_dx), poisson(q), NOTHING, sigma)


@pytest.mark.parametrize(("mu", "dx"), [(0.02, 1e-5), (1.0, 1e-3), (10.0, 1e-2)])
def test_a_full_batch_is_the_quadrature(mu: float, dx: float) -> None:
    """E4."""
    both_are_connected(mixtures.gaussian(mu, dx), ((1.0, mu),), NOTHING, 1.0)


@pytest.mark.parametrize(
    ("q", "sigma", "dx"), [(1e-5, 0.5, 1e-3), (0.02, 0.1, 1e-2), (0.3, 50.0, 1e-5), (0.4, 1.0, 1e-2), (1.0, 2.0, 1e-3)]
)
def test_a_step_under_replace_is_the_quadrature(q: float, sigma: float, dx: float) -> None:
    """E6: the worst replacement is the opposite gradient; by symmetry both directions are one."""
    both_are_connected(mixtures.replaced(q, sigma, dx), poisson(q), poisson(q, -1.0), sigma)


@pytest.mark.parametrize(
    ("q", "sigma", "trials", "dx"),
    [(1e-5, 0.5, 4, 1e-3), (0.01, 4.0, 64, 1e-3), (0.2, 50.0, 16, 1e-4), (0.3, 0.5, 3, 1e-2), (0.9, 2.0, 8, 1e-2)],
)
def test_a_step_of_a_user_is_the_quadrature(q: float, sigma: float, trials: int, dx: float) -> None:
    """E6: up to 64 examples of one user, each sampled by itself."""
    both_are_connected(mixtures.binomial(q, sigma, trials, dx), binomial(q, trials), NOTHING, sigma)


@pytest.mark.parametrize(("q", "sigma"), [(1e-5, 0.5), (0.01, 0.1), (0.3, 1.0), (0.5, 50.0)])
def test_a_user_of_one_example_is_a_poisson_step(q: float, sigma: float) -> None:
    """E6: by two code paths, one with a formula for the inverse of the loss and one that searches for it."""
    eps = np.linspace(0, 5, 300)
    one, other = mixtures.binomial(q, sigma, 1, 1e-2), mixtures.poisson(q, sigma, 1e-2)
    for left, right in ((one.remove, other.remove), (one.add, other.add)):
        assert left.delta(eps) == pytest.approx(right.delta(eps), rel=1e-9, abs=1e-14)


def test_the_quadrature_knows_the_closed_form() -> None:
    """The oracle itself, far into the tail: the Gaussian profile from tables of the normal distribution."""
    from scipy.stats import norm

    for mu, eps in ((1.0, 0.0), (1.0, 2.0), (0.1, 0.3), (5.0, 20.0)):
        closed = norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)
        assert exact(((1.0, mu),), NOTHING, 1.0, eps) == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "kind"),
    [
        (0.01, 0.8, 300, "poisson"),
        (0.2, 2.0, 100, "poisson"),
        (1e-3, 0.5, 1000, "poisson"),
        (0.05, 1.0, 50, "replace"),
        (0.02, 2.0, 100, "user"),
    ],
)
def test_compositions_agree_with_another_implementation(q: float, sigma: float, steps: int, kind: str) -> None:
    """E4: dp-accounting on the same grid, direction by direction, to four digits of ε."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as library

    dx, trials = 1e-3, 8
    if kind == "user":
        mine = mixtures.binomial(q, sigma, trials, dx)
        theirs = library.from_mixture_gaussian_mechanism(
            standard_deviation=sigma,
            sensitivities=[m for _, m in binomial(q, trials)],
            sampling_probs=[w for w, _ in binomial(q, trials)],
            value_discretization_interval=dx,
        )
    else:
        mine = (mixtures.replaced if kind == "replace" else mixtures.poisson)(q, sigma, dx)
        relation = NeighboringRelation.REPLACE_ONE if kind == "replace" else NeighboringRelation.ADD_OR_REMOVE_ONE
        theirs = library.from_gaussian_mechanism(
            standard_deviation=sigma,
            sampling_prob=q,
            value_discretization_interval=dx,
            neighboring_relation=relation,
        )
    mine, theirs = mine.each(lambda loss: loss.power(steps)), theirs.self_compose(steps)
    for ours, pmf in ((mine.remove, theirs._pmf_remove), (mine.add, theirs._pmf_add)):
        for delta in (1e-3, 1e-5, 1e-7):
            assert ours.epsilon(delta) == pytest.approx(pmf.get_epsilon_for_delta(delta), rel=1e-4)

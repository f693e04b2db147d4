"""Attack risk against the best attacks there are: likelihood-ratio tests, Bayes-optimal guesses, composed by listing.

Neyman & Pearson for tests; for reconstruction Kulynych et al. 2025 (arXiv 2507.06969): success is at most 1 − β(κ).
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from dpft_accounting import EpsDelta, PoissonGaussian, Unit, mixtures, profile
from dpft_accounting.losses import Loss, Pair
from dpft_accounting.tradeoff import power
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Array = NDArray[np.float64]

EXAMPLE = Unit("example")
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5)


def hockey_stick(p: Array, q: Array, eps: Array) -> Array:
    flat = np.ravel(eps)
    return np.maximum(p - np.exp(np.minimum(flat, 700))[:, None] * q, 0.0).sum(axis=1).reshape(np.shape(eps))


def vertices(p: Array, q: Array) -> tuple[Array, Array]:
    """False- and true-positive rates of the likelihood-ratio tests of q against p, from none to all outcomes."""
    order = np.argsort(-np.log(p / q))
    return np.concatenate([[0], np.cumsum(q[order])]), np.concatenate([[0], np.cumsum(p[order])])


def best_test(p: Array, q: Array, alpha: float) -> float:
    """The larger power of both directions of a discrete pair."""
    return max(float(np.interp(alpha, *vertices(*pair))) for pair in ((p, q), (q, p)))


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_the_power_of_a_gaussian_from_its_discrete_loss(mu: float) -> None:
    """E4: through PLD's grid, in both directions of the tail, to three digits and never below Φ(Φ⁻¹(α) + μ)."""
    pair = mixtures.gaussian(mu, 4e-4)
    for alpha in RATES:
        exact = float(ndtr(ndtri(alpha) + mu))
        assert exact * (1 - 1e-9) <= power(pair.delta, alpha) <= exact * (1 + 1e-3)
    assert float(pair.delta(np.zeros(1))[0]) == pytest.approx(2 * float(ndtr(mu / 2)) - 1, rel=1e-6)


@pytest.mark.parametrize(("q", "sigma"), [(0.2, 0.9), (0.01, 0.6), (0.8, 2.0), (1e-3, 1.0)])
def test_one_poisson_step_is_the_hull_of_both_likelihood_ratio_tests(q: float, sigma: float) -> None:
    """E4: thresholds on x are the best tests, either way round; a profile of both knows their concave hull."""
    x = np.linspace(-10 * sigma, 1 + 10 * sigma, 200_001)
    without, with_unit = ndtr(-x / sigma), (1 - q) * ndtr(-x / sigma) + q * ndtr((1 - x) / sigma)
    below, below_with = ndtr(x / sigma), (1 - q) * ndtr(x / sigma) + q * ndtr((x - 1) / sigma)
    # By duality: the line of slope e^t that just touches both curves, for many slopes; the hull is the least of them.
    logs = np.geomspace(1e-5, 4 / sigma**2 + 8, 600)
    slopes = np.exp(np.concatenate([-logs, [0.0], logs]))
    touch = [max((with_unit - s * without).max(), (below - s * below_with).max()) for s in slopes]
    found = profile(PoissonGaussian(q, sigma, 1), EXAMPLE)
    for alpha in RATES[1:]:
        test = float(np.interp(-alpha, -without, with_unit))
        other = float(np.interp(alpha, below_with, below))
        assert found.tpr(alpha) >= max(test, other) * (1 - 1e-6)
        hull = float(min(1.0, *(t + s * alpha for t, s in zip(touch, slopes, strict=True))))
        assert found.tpr(alpha) == pytest.approx(hull, rel=3e-3)


def random_pair(rng: np.random.Generator, size: int, spread: float) -> tuple[Array, Array]:
    p = rng.dirichlet(np.ones(size)) + 1e-3
    q = p * np.exp(rng.uniform(-spread, spread, size))
    return p / p.sum(), q / q.sum()


def as_loss(p: Array, q: Array, dx: float) -> Loss:
    cells = np.ceil(np.log(p / q) / dx - 1e-9).astype(int)
    return Loss(dx, int(cells.min()), np.bincount(cells - cells.min(), weights=p), 0.0)


def test_composed_attacks_are_bounded_by_the_composed_loss() -> None:
    """E5: the best test on three releases, by listing all outcomes of all three; close for symmetric pairs."""
    rng = np.random.default_rng(11)
    for trial in range(60):
        p, q = random_pair(rng, int(rng.integers(2, 5)), 0.8)
        if trial % 2:
            p, q = np.concatenate([p, q]) / 2, np.concatenate([q, p]) / 2
        both = Pair(as_loss(p, q, 1e-3), as_loss(q, p, 1e-3)).each(lambda loss: loss.power(3))
        three_p = np.array([math.prod(parts) for parts in product(p, repeat=3)])
        three_q = np.array([math.prod(parts) for parts in product(q, repeat=3)])
        for alpha in (1e-3, 0.05, 0.5):
            exact = best_test(three_p, three_q, alpha)
            found = power(both.delta, alpha)
            assert found >= exact - 1e-12
            if trial % 2:
                assert found <= exact * 1.02 + 1e-6


def test_no_guess_at_a_secret_beats_the_bound_on_reconstruction() -> None:
    """E4: any prior, any mechanism on few outcomes, the Bayes-optimal guess; some come within five percent."""
    rng = np.random.default_rng(12)
    closest = 0.0
    for _ in range(400):
        secrets, outcomes = int(rng.integers(2, 7)), int(rng.integers(2, 6))
        prior = rng.dirichlet(np.full(secrets, rng.choice([0.3, 1.0, 30.0])))
        none = rng.dirichlet(np.ones(outcomes)) + 1e-3
        none /= none.sum()
        released = none * np.exp(rng.uniform(-1, 1, (secrets, outcomes)) * rng.choice([0.1, 1.0, 3.0]))
        released /= released.sum(axis=1, keepdims=True)

        def worst(eps: Array, none: Array = none, released: Array = released) -> Array:
            sides = [hockey_stick(a, b, eps) for row in released for a, b in ((row, none), (none, row))]
            return np.max(sides, axis=0)

        success = float((prior[:, None] * released).max(axis=0).sum())
        bound = power(worst, float(prior.max()))
        assert success <= bound + 1e-9
        if bound < 0.99 and success > prior.max() * 1.05:
            closest = max(closest, success / bound)
    assert closest > 0.95


def test_the_pair_alone_would_allow_almost_everything() -> None:
    """Known figures: advantage .473 and TPR 17 % and 4.8 % from the profile; .999 and 99.97 % from (ε, δ) alone."""
    real = profile(PoissonGaussian(1024 / 67_349, 0.7, 1315), EXAMPLE)
    pair = profile(EpsDelta(7.97, 7.4e-6), EXAMPLE)
    assert real.epsilon(7.4e-6).upper == pytest.approx(7.97, abs=0.01)
    assert (real.advantage(), pair.advantage()) == pytest.approx((0.473, 0.999), abs=1e-3)
    assert (real.tpr(0.01), pair.tpr(0.01)) == pytest.approx((0.170, 0.9997), abs=1e-3)
    assert real.tpr(1e-3) == pytest.approx(0.048, abs=1e-3)
    # The pair's worst mechanism is known, and so is its best test: leak, then reject one side of a coin.
    heads = math.exp(7.97) / (1 + math.exp(7.97))
    for alpha in (1e-5, 1e-4, 0.2):
        exact = 7.4e-6 + (1 - 7.4e-6) * float(np.interp(alpha / (1 - 7.4e-6), [0, 1 - heads, 1], [0, heads, 1]))
        assert pair.tpr(alpha) == pytest.approx(exact, rel=2e-3)

"""The best of K against exact enumeration: discrete outcomes, every distribution of K, both directions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from dpft_accounting import Gaussian, PoissonGaussian, Select, Unit, epsilon
from dpft_accounting.losses import Loss, Pair
from dpft_accounting.rdp import ORDERS
from dpft_accounting.select import best_profile, gamma, mean_of
from dpft_accounting.select_rdp import best_curve

DX = 1e-3
EPSILONS = np.arange(0.0, 12.0, 0.01)
DISTRIBUTIONS = ["geometric", "logarithmic", "negative_binomial", "poisson"]


def generating(select: Select, t: np.ndarray) -> np.ndarray:
    """f(t) = E t^K, from the definitions of the families; independent of the package's sums and roots."""
    if select.dist == "poisson":
        return np.exp(select.mean * (t - 1))
    eta, g = select.shape, solved(select.mean, select.shape or 0.0)
    if eta == 0:
        return np.log1p(-(1 - g) * t) / math.log(g)
    assert eta is not None
    return (np.power(1 - (1 - g) * t, -eta) - 1) / (g**-eta - 1)


def solved(mean: float, eta: float) -> float:
    """γ of the mean, by bisection on f'(1) = E K."""
    low, high = -40.0, -1e-9
    for _ in range(200):
        middle = (low + high) / 2
        g = math.exp(middle)
        found = (1 / g - 1) / -middle if eta == 0 else eta * (1 - g) / (g * (1 - g**eta))
        low, high = (middle, high) if found > mean else (low, middle)
    return math.exp(high)


def best_of(base: np.ndarray, select: Select) -> np.ndarray:
    """Distribution of the best outcome, outcomes in ascending order of score; the last entry is K = 0."""
    cumulative = np.concatenate([[0.0], np.cumsum(base)])
    cumulative[-1] = 1.0
    f = generating(select, cumulative)
    return np.concatenate([np.diff(f), [f[0]]])


def hockey(p: np.ndarray, q: np.ndarray, eps: np.ndarray) -> np.ndarray:
    return np.maximum(p[None, :] - np.exp(eps)[:, None] * q[None, :], 0.0).sum(axis=1)


def as_pair(p: np.ndarray, q: np.ndarray) -> Pair:
    """The discrete pair as losses, rounded up to the grid: a loss that dominates."""

    def one(top: np.ndarray, bottom: np.ndarray) -> Loss:
        cells = np.ceil(np.log(top / bottom) / DX).astype(int)
        mass = np.zeros(cells.max() - cells.min() + 1)
        np.add.at(mass, cells - cells.min(), top)
        return Loss(DX, int(cells.min()), mass, 0.0)

    return Pair(one(p, q), one(q, p))


def random_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    size = int(rng.integers(2, 7))
    p = rng.dirichlet(np.full(size, rng.uniform(0.3, 3))) + 1e-6
    q = p * np.exp(rng.normal(0, rng.uniform(0.05, 1.5), size))
    return p / p.sum(), q / q.sum()


def random_select(rng: np.random.Generator, dist: Any) -> Select:
    shape = float(rng.uniform(-0.9, 3)) if dist == "negative_binomial" else None
    mean = float(rng.uniform(0.1, 8)) if dist == "poisson" else float(np.exp(rng.uniform(0.01, 4)))
    return Select(Gaussian(1.0), mean, dist, shape)


@pytest.mark.parametrize("dist", DISTRIBUTIONS)
def test_the_profile_bound_holds_in_every_case_and_is_sometimes_tight(dist: Any) -> None:
    """E5: 400 random pairs a family. Never below the exact curve; within five percent of it somewhere."""
    rng = np.random.default_rng(7)
    closest = math.inf
    for _ in range(400):
        (p, q), select = random_pair(rng), random_select(rng, dist)
        profile, _ = best_profile(select, [as_pair(p, q)], DX)
        bound = profile(EPSILONS)
        best_p, best_q = best_of(p, select), best_of(q, select)
        exact = np.maximum(hockey(best_p, best_q, EPSILONS), hockey(best_q, best_p, EPSILONS))
        assert np.all(bound >= exact - 1e-10), (p, q, select)
        seen = exact > 1e-6
        if seen.any():
            closest = min(closest, float(np.min(bound[seen] / exact[seen])))
    assert closest < 1.05


def test_a_bound_that_forgets_the_shift_is_found_out() -> None:
    """The instrument fires: E K·δ(ε) alone, without moving ε, is violated."""
    rng = np.random.default_rng(1)
    violated = 0
    for _ in range(200):
        (p, q), select = random_pair(rng), random_select(rng, "geometric")
        naive = select.mean * as_pair(p, q).delta(EPSILONS)
        best_p, best_q = best_of(p, select), best_of(q, select)
        exact = np.maximum(hockey(best_p, best_q, EPSILONS), hockey(best_q, best_p, EPSILONS))
        violated += bool(np.any(naive < exact - 1e-6))
    assert violated > 0


@pytest.mark.parametrize("dist", DISTRIBUTIONS)
def test_the_renyi_bound_holds(dist: Any) -> None:
    """E5: exact Rényi divergences of the winners, both directions, at all orders."""
    rng = np.random.default_rng(11)
    orders = [order for order in ORDERS if order <= 64]
    for _ in range(150):
        (p, q), select = random_pair(rng), random_select(rng, dist)
        base = [max(renyi(p, q, order), renyi(q, p, order)) for order in orders]
        bound = best_curve(select, orders, base)
        best_p, best_q = best_of(p, select), best_of(q, select)
        exact = [max(renyi(best_p, best_q, order), renyi(best_q, best_p, order)) for order in orders]
        assert all(b >= e - 1e-9 for b, e in zip(bound, exact, strict=True)), (p, q, select)


def renyi(p: np.ndarray, q: np.ndarray, order: float) -> float:
    there = p > 0
    terms = order * np.log(p[there]) + (1 - order) * np.log(q[there])
    return float(np.logaddexp.reduce(terms) / (order - 1))


@pytest.mark.parametrize("eta", [-0.5, 0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("mean", [1.01, 2.0, 10.0, 300.0])
def test_gamma_gives_the_mean(eta: float, mean: float) -> None:
    dist: Any = {0.0: "logarithmic", 1.0: "geometric"}.get(eta, "negative_binomial")
    select = Select(Gaussian(1.0), mean, dist, None if eta in (0.0, 1.0) else eta)
    assert gamma(select) == pytest.approx(solved(mean, eta), rel=1e-7)
    assert mean_of(gamma(select), eta) == pytest.approx(mean, rel=1e-9)
    if eta == 1.0:
        assert gamma(select) == pytest.approx(1 / mean, rel=1e-9)


@pytest.mark.parametrize(
    ("mean", "dist", "attained", "profile", "renyi_bound"),
    [
        (10, "geometric", 4.81, 6.29, 8.29),
        (10, "logarithmic", 4.81, 5.96, 7.30),
        (10, "poisson", 4.81, 8.01, 9.45),
        (30, "geometric", 5.08, 7.26, 9.42),
        (30, "logarithmic", 5.08, 6.65, 8.04),
        (30, "poisson", 9.47, 14.7, 17.8),
    ],
)
def test_the_known_figures(mean: float, dist: Any, attained: float, profile: float, renyi_bound: float) -> None:
    """A base run of ε 4.22: the profile bound, the Rényi bound, and what ranking by the loss itself attains."""
    select = Select(PoissonGaussian(1024 / 67_349, 0.9, 1315), mean, dist)
    unit = Unit("example")
    found = epsilon(select, unit, 7.4e-6, method="pld").upper
    assert found == pytest.approx(profile, rel=5e-3)
    assert found > attained
    assert epsilon(select, unit, 7.4e-6, method="rdp").upper == pytest.approx(renyi_bound, rel=5e-3)
    assert epsilon(select, unit, 7.4e-6).upper == found


def test_the_best_of_one_is_one_run() -> None:
    base = PoissonGaussian(0.01, 0.8, 500)
    unit = Unit("example")
    for dist in ("geometric", "logarithmic"):
        found = epsilon(Select(base, 1, dist), unit, 1e-6).upper  # type: ignore[arg-type]
        assert found == pytest.approx(epsilon(base, unit, 1e-6).upper, rel=2e-3)

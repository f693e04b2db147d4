"""Truncated Poisson batches against the exact mechanism, every sample and every cut of it counted.

The bound is that of Ganesh 2025 (arXiv 2508.15089), per step and for the worst gradients of all other units; the
coupling to untruncated batches is that of Chua et al. 2024 (arXiv 2411.04205). Here nothing is bounded: the exact
mixtures of all ways to give up to seven other units gradients −1, 0 or 1, and the exact divergence of each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from dpft_accounting import PoissonGaussian, TruncatedPoissonGaussian, Unit, delta, epsilon
from dpft_accounting.compose import compose
from dpft_accounting.steps import one_of_each
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom

Array = NDArray[np.float64]
Sum = dict[int, float]  # distribution of the sum of the gradients that are kept

EPSILONS = np.array([0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0])


def others(count: int) -> Iterator[tuple[int, int, int]]:
    """All ways to give ``count`` units gradients 1, −1 and 0; their order cannot matter."""
    return ((p, m, count - p - m) for p in range(count + 1) for m in range(count - p + 1))


def drawn(units: tuple[int, int, int], size: int) -> Sum:
    """The sum over a uniformly random subset of ``size`` of these units."""
    found: Sum = Counter()
    for p in range(min(units[0], size) + 1):
        for m in range(min(units[1], size - p) + 1):
            ways = math.comb(units[0], p) * math.comb(units[1], m) * math.comb(units[2], size - p - m)
            found[p - m] += ways / math.comb(sum(units), size)
    return found


def without(units: tuple[int, int, int], q: float, cap: int) -> Sum:
    """These units alone: a random part of a random sample is a random sample."""
    found: Sum = Counter()
    for size in range(sum(units) + 1):
        for total, chance in drawn(units, min(size, cap)).items():
            found[total] += float(binom.pmf(size, sum(units), q)) * chance
    return found


def with_one(units: tuple[int, int, int], q: float, cap: int, gradient: int) -> Sum:
    """These units and one more; once sampled, it is kept with probability cap/size."""
    found: Sum = Counter()
    for total, chance in without(units, q, cap).items():
        found[total] += (1 - q) * chance
    for size in range(1, sum(units) + 2):
        sampled = q * float(binom.pmf(size - 1, sum(units), q))
        stays = min(1.0, cap / size)
        for total, chance in drawn(units, min(size, cap) - 1).items():
            found[total + gradient] += sampled * stays * chance
        for total, chance in drawn(units, cap).items() if size > cap else ():
            found[total] += sampled * (1 - stays) * chance
    return found


def divergence(p: Sum, q: Sum, sigma: float) -> Array:
    """∫ (P − e^ε Q)₊ for all EPSILONS: normal tables between the roots of ln(P/Q) = ε, of which there may be many."""
    means = np.array(sorted({*p, *q}), dtype=float)
    weights = np.array([[side.get(int(m), 0.0) for m in means] for side in (p, q)])
    x = np.linspace(means[0] - 10 * sigma, means[-1] + 10 * sigma, 6001)
    density = weights @ np.exp(-(((x - means[:, None]) / sigma) ** 2) / 2)
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(density)
    loss = log_p - log_q
    found = []
    for eps in EPSILONS:
        above = loss > eps
        at = np.flatnonzero(above[:-1] != above[1:])
        # Linear in a cell of a hundredth of σ; the integrand is zero at the root, so its error counts squared.
        roots = x[at] + (eps - loss[at]) / (loss[at + 1] - loss[at]) * (x[1] - x[0])
        ends = np.concatenate([[-np.inf], roots, [np.inf]])
        first = 0 if above[0] else 1
        cdf = (ndtr((ends[:, None] - means) / sigma) @ weights.T) @ np.array([1.0, -math.exp(eps)])
        found.append(float(np.diff(cdf)[first::2].sum()))
    return np.array(found)


def worst(n: int, q: float, cap: int, sigma: float) -> Array:
    """Over all other gradients; against a blank that takes a place in the batch, and one that leaves it to others."""
    found = np.zeros(len(EPSILONS))
    for units in others(n - 1):
        there = with_one(units, q, cap, 1)  # −1 is the mirror image
        for blank in (with_one(units, q, cap, 0), without(units, q, cap)):
            assert sum(blank.values()) == pytest.approx(1)
            found = np.maximum(found, np.maximum(divergence(there, blank, sigma), divergence(blank, there, sigma)))
    return found


def ours(n: int, q: float, cap: int, sigma: float, steps: int = 1) -> Array:
    (composition,) = compose([TruncatedPoissonGaussian(n, q, cap, sigma, steps)], Unit("x", "zero_out", n))
    return one_of_each(composition, 1e-3).delta(EPSILONS)


@pytest.mark.parametrize(
    ("n", "cap", "q", "sigma"),
    [
        (2, 1, 0.5, 1.0),
        (5, 1, 0.9, 0.5),
        (5, 2, 0.3, 0.7),
        (6, 5, 0.8, 1.5),
        (7, 3, 0.4, 2.0),
        (8, 2, 0.1, 0.4),
        (8, 4, 0.5, 0.8),
        (8, 6, 0.5, 0.6),
        (8, 3, 1.0, 1.0),
    ],
)
def test_one_truncated_step_is_never_below_any_exact_one(n: int, cap: int, q: float, sigma: float) -> None:
    """E6, D3: both directions, both meanings of a blank, all gradients of the others; and of the right size."""
    exact, found = worst(n, q, cap, sigma), ours(n, q, cap, sigma)
    assert np.all(found >= exact - 1e-10)
    assert found[0] <= exact[0] * 2
    assert delta(TruncatedPoissonGaussian(n, q, cap, sigma, 1), Unit("x", "zero_out", n), 1.0).upper >= exact[4]


@pytest.mark.parametrize(("n", "q", "sigma"), [(3, 0.4, 1.0), (8, 0.2, 0.6)])
def test_a_cap_that_never_cuts_is_exactly_poisson(n: int, q: float, sigma: float) -> None:
    """E6."""
    unit = Unit("x", "zero_out", n)
    for cap in (n, n + 1, 10 * n):
        exact = worst(n, q, cap, sigma)
        assert ours(n, q, cap, sigma) == pytest.approx(exact, rel=1e-3, abs=1e-9)
        assert np.all(ours(n, q, cap, sigma) >= exact - 1e-10)
        cut = TruncatedPoissonGaussian(n, q, cap, sigma, 30)
        assert epsilon(cut, unit, 1e-6) == epsilon(PoissonGaussian(q, sigma, 30), unit, 1e-6)


def test_a_smaller_cap_costs_more_and_poisson_is_the_least() -> None:
    """The price of cutting, from no cut at all to a batch of one."""
    found = [ours(8, 0.4, cap, 0.8) for cap in (8, 7, 6, 5, 4, 3)]
    assert all(np.all(less <= more + 1e-12) for less, more in pairwise(found))
    assert found[-1][4] > 1.2 * found[0][4]


@pytest.mark.parametrize(("cap", "q"), [(2, 0.4), (3, 0.6)])
def test_two_truncated_steps_are_never_below_the_exact_ones(cap: int, q: float) -> None:
    """E5: what a bound per step must survive: the exact product of two steps, for each choice of gradients."""
    n, sigma = 5, 0.9
    found = ours(n, q, cap, sigma, steps=2)
    x = np.linspace(-n - 6 * sigma, n + 6 * sigma, 800)
    area = (x[1] - x[0]) ** 2

    def density(total: Sum) -> Array:
        return sum(w * np.exp(-(((x - m) / sigma) ** 2) / 2) for m, w in total.items()) / sigma / math.sqrt(2 * math.pi)

    for units in ((4, 0, 0), (0, 4, 0), (0, 0, 4), (2, 2, 0), (0, 3, 1)):
        there = density(with_one(units, q, cap, 1))
        for blank in (density(with_one(units, q, cap, 0)), density(without(units, q, cap))):
            for a, b in ((there, blank), (blank, there)):
                for at in (0, 3, 4, 5, 7):
                    two = np.maximum(np.outer(a, a) - math.exp(EPSILONS[at]) * np.outer(b, b), 0).sum() * area
                    assert found[at] >= two * (1 - 1e-4) - 1e-8


@pytest.mark.parametrize("steps", [10, 1000])
def test_a_truncated_run_is_within_the_coupling_of_poisson(steps: int) -> None:
    """Two runs differ from untruncated ones with probability T·Pr[Bin > cap] each: never below, and at most above."""
    n, q, sigma = 2000, 0.05, 0.8
    for cap in (160, 175, 200):
        apart = steps * (1 + np.exp(EPSILONS)) * float(binom.sf(cap, n, q))
        (composition,) = compose([PoissonGaussian(q, sigma, steps)], Unit("x", "zero_out", n))
        plain, found = one_of_each(composition, 1e-3).delta(EPSILONS), ours(n, q, cap, sigma, steps)
        assert np.all(found >= plain - np.minimum(apart, 1.0) - 1e-12)
        assert np.all(found >= plain - 1e-12)  # and it never claims that cutting helps
        assert np.all(found <= np.minimum(plain + apart, 1.0) * (1 + 1e-6) + 1e-12)


def test_the_known_price_of_a_cap() -> None:
    """n = 67349, b = 1024, σ = .7, T = 1315: ε at b + k·sqrt(b), three deviations to six, where it is free."""
    n, b, sigma, steps, d = 67_349, 1024, 0.7, 1315, 7.4e-6
    unit = Unit("x", "zero_out", n)
    plain = epsilon(PoissonGaussian(b / n, sigma, steps), unit, d).upper
    assert plain == pytest.approx(7.974, rel=1e-3)
    for k, known in ((3, 11.57), (4, 8.354), (5, 7.979), (6, 7.974)):
        found = epsilon(TruncatedPoissonGaussian(n, b / n, b + k * 32, sigma, steps), unit, d).upper
        assert found == pytest.approx(known, rel=1e-3)
        assert found >= plain * (1 - 1e-6)

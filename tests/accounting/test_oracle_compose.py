"""Composition against closed sums, explicit products, and itself written differently."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from dpft_accounting import (
    BandedMF,
    EpsDelta,
    Gaussian,
    Mechanism,
    Parallel,
    PoissonGaussian,
    Select,
    Sequential,
    ShuffledGaussian,
    TruncatedPoissonGaussian,
    Unit,
    Unsupported,
    UserELS,
    delta,
    epsilon,
)
from dpft_accounting.compose import compose
from dpft_accounting.steps import one_of_each
from numpy.typing import NDArray

Array = NDArray[np.float64]

N = 1000
UNITS = [Unit("x"), Unit("x", "zero_out", N), Unit("x", "replace", N)]
KINDS: list[Mechanism] = [
    Gaussian(3.0, 2),
    PoissonGaussian(0.05, 1.1, 7),
    TruncatedPoissonGaussian(N, 0.05, 70, 1.1, 7),
    ShuffledGaussian(2, 3.0),
    UserELS(0.02, 2.0, 7, 3),
    BandedMF(0.01, 1.5, 12, 4),
    EpsDelta(0.4, 1e-7),
    Select(PoissonGaussian(0.05, 3.0, 7), 2.0),
]
D = 1e-6


def unit_of(mechanism: Mechanism) -> Unit:
    """The weakest relation that the mechanism has a proof for."""
    return next(unit for unit in UNITS if unit.adjacency in mechanism.adjacencies)


def eps(mechanism: Mechanism, unit: Unit, d: float = D) -> float:
    return epsilon(mechanism, unit, d).upper


@pytest.mark.parametrize("mechanism", KINDS, ids=lambda m: m.kind)
@pytest.mark.parametrize("k", [1, 3])
def test_k_in_sequence_are_one_with_k_times_the_steps(mechanism: Mechanism, k: int) -> None:
    """E5: for every kind; what is released at once has ``with_steps`` for the same."""
    unit = unit_of(mechanism)
    more = mechanism.with_steps(k * mechanism.planned)
    one = Sequential([mechanism] * k)
    assert compose([one], unit) == compose([more], unit) == compose([mechanism] * k, unit)
    assert eps(one, unit) == eps(more, unit)
    if k > 1:
        assert eps(mechanism, unit) < eps(one, unit) <= k * eps(mechanism, unit, D / k) * 1.002


def test_steps_of_a_band_are_counted_by_full_turns() -> None:
    """E5: the exception that proves the rule: a turn begun is a turn."""
    unit = UNITS[0]
    assert eps(BandedMF(0.01, 1.5, 13, 4), unit) == eps(BandedMF(0.01, 1.5, 16, 4), unit)
    assert eps(BandedMF(0.01, 1.5, 13, 4), unit) > eps(BandedMF(0.01, 1.5, 12, 4), unit)


def test_the_order_of_a_composition_does_not_matter() -> None:
    """E5: nor how it is nested."""
    unit = UNITS[0]
    parts: list[Mechanism] = [Gaussian(9.0, 2), PoissonGaussian(0.05, 2.0, 9), EpsDelta(0.1, 1e-8)]
    found = {compose(list(order), unit) for order in permutations(parts)}
    found |= {compose([Sequential([a, Sequential([b, c])])], unit) for a, b, c in permutations(parts)}
    assert len(found) == 1


@pytest.mark.parametrize("mechanism", KINDS, ids=lambda m: m.kind)
def test_equal_parts_are_one_part_and_parallel_is_no_more_than_sequence(mechanism: Mechanism) -> None:
    """E5: a unit is in one part; under replace it may leave one and enter another."""
    for unit in UNITS:
        if unit.adjacency not in mechanism.adjacencies or "add_remove" not in mechanism.adjacencies:
            continue
        both = Parallel({"a": mechanism, "b": mechanism})
        if unit.adjacency == "replace" and isinstance(mechanism, EpsDelta):
            with pytest.raises(Unsupported, match="leaves one part"):  # stated of replacements, not of removals
                epsilon(both, unit, D)
            continue
        twice = Sequential([mechanism, mechanism])
        assert eps(both, unit) <= eps(twice, unit) * (1 + 2e-3)
        if unit.adjacency == "replace":
            assert eps(both, unit) >= eps(mechanism, unit)
        else:
            assert eps(both, unit) == eps(mechanism, unit)


def test_parallel_is_its_worst_part() -> None:
    """E5."""
    quiet, loud, shared = PoissonGaussian(0.05, 2.0, 9), PoissonGaussian(0.05, 1.0, 9), Gaussian(9.0)
    for unit in UNITS[:2]:
        assert eps(Parallel({"a": quiet, "b": loud}), unit) == eps(loud, unit)
        both = Sequential([shared, Parallel({"a": quiet, "b": loud})])
        assert eps(both, unit) == eps(Sequential([shared, loud]), unit)


def poisson_density(x: Array, q: float, sigma: float, mean: float) -> Array:
    root = sigma * math.sqrt(2 * math.pi)
    return ((1 - q) * np.exp(-((x / sigma) ** 2) / 2) + q * np.exp(-(((x - mean) / sigma) ** 2) / 2)) / root


@pytest.mark.parametrize(
    ("first", "second"),
    [((0.5, 1.0), (0.2, 0.7)), ((0.1, 0.6), (0.1, 0.6)), ((0.9, 2.0), (1.0, 3.0)), ((1.0, 16.0), (0.05, 0.1))],
)
def test_a_unit_that_changes_parts_costs_the_exact_product(
    first: tuple[float, float], second: tuple[float, float]
) -> None:
    """E6: it leaves part a, and another enters part b: one integral over both outputs, both directions."""
    unit = UNITS[2]
    (qa, sa), (qb, sb) = first, second
    x, y = np.linspace(-9 * sa, 1 + 9 * sa, 1501), np.linspace(-9 * sb, 1 + 9 * sb, 1501)
    area = (x[1] - x[0]) * (y[1] - y[0])
    a_in, a_out = poisson_density(x, qa, sa, 1.0), poisson_density(x, 0.0, sa, 1.0)
    b_in, b_out = poisson_density(y, qb, sb, 1.0), poisson_density(y, 0.0, sb, 1.0)
    old, new = np.outer(a_in, b_out), np.outer(a_out, b_in)
    parts = {"a": PoissonGaussian(qa, sa, 1), "b": PoissonGaussian(qb, sb, 1)}
    for e in (0.0, 0.3, 1.0, 2.0):
        crossing = max((np.maximum(p - math.exp(e) * q, 0)).sum() * area for p, q in ((old, new), (new, old)))
        own = max(delta(part, unit, e).upper for part in parts.values())
        found = delta(Parallel(parts), unit, e).upper
        assert found >= max(crossing * (1 - 1e-4), own * (1 - 1e-6))
        assert found <= max(crossing, own) * 1.005 + 1e-8
        # Where one part hints often and the other tells all but rarely, both together are worse than either twice.
        assert crossing > own * 1.1 or (sb, e) != (0.1, 0.0)


def test_the_crossing_of_full_batches_is_pythagoras() -> None:
    """E6: μ of both parts' add/remove, at right angles; or twice the larger, which is one part's own replace."""
    unit = UNITS[2]
    found = eps(Parallel({"a": Gaussian(4.0), "b": Gaussian(3.0)}), unit)
    assert found == eps(Gaussian(1.5), UNITS[0])
    assert found > eps(Gaussian(1 / math.hypot(1 / 4, 1 / 3)), UNITS[0])


def optimal(eps0: float, delta0: float, k: int) -> list[tuple[float, float]]:
    """Kairouz, Oh & Viswanath 2015, theorem 3.3: exact (ε, δ) pairs of k stated guarantees together."""
    found = []
    for i in range(k // 2 + 1):
        terms = (math.comb(k, j) * (math.exp((k - j) * eps0) - math.exp((k - 2 * i + j) * eps0)) for j in range(i))
        inner = math.fsum(terms) / (1 + math.exp(eps0)) ** k
        found.append(((k - 2 * i) * eps0, 1 - (1 - delta0) ** k * (1 - inner)))
    return found


@pytest.mark.parametrize(("eps0", "delta0", "k"), [(0.1, 1e-6, 40), (0.5, 1e-4, 9), (1.0, 0.0, 4), (0.01, 1e-7, 300)])
def test_stated_guarantees_compose_by_the_optimal_theorem(eps0: float, delta0: float, k: int) -> None:
    """E5: on a grid that ε₀ is on, equal to it; on any other never below, and above by no more than the grid."""
    stated = Sequential([EpsDelta(eps0, delta0)] * k)
    exact = [pair for pair in optimal(eps0, delta0, k) if pair[1] > 1e-8]
    assert len(exact) >= 2
    aligned = one_of_each(compose([stated], UNITS[0])[0], eps0 / 8)
    for e, d in exact:
        assert float(aligned.delta(np.array([e]))[0]) == pytest.approx(d, rel=1e-7, abs=1e-11)
        found = delta(stated, UNITS[0], e, method="pld").upper
        assert d * (1 - 1e-7) - 1e-12 <= found <= d * 1.06 + 1e-11
        if 10 * k * delta0 < d < 0.5 and e > 0:
            assert eps(stated, UNITS[0], d) == pytest.approx(e, rel=6e-3, abs=1e-6)


@pytest.mark.parametrize("mechanism", KINDS, ids=lambda m: m.kind)
def test_a_relation_without_a_proof_is_refused_by_name(mechanism: Mechanism) -> None:
    """E6: also deep inside a combination, and under a Parallel that would need it."""
    for unit in UNITS:
        inside: list[Mechanism] = [mechanism, Sequential([Gaussian(1.0), Sequential([mechanism])])]
        for whole in inside:
            if unit.adjacency in mechanism.adjacencies:
                assert eps(whole, unit) > 0
                continue
            with pytest.raises(Unsupported) as caught:
                epsilon(whole, unit, D)
            text = str(caught.value)
            assert type(mechanism).__name__ in text
            assert unit.adjacency in text
            assert all(known in text for known in mechanism.adjacencies)


def test_parts_that_a_unit_may_cross_need_add_remove_of_each() -> None:
    """E6: shuffling has replace, but nothing is known of a unit that leaves it."""
    parts = Parallel({"a": ShuffledGaussian(1, 3.0), "b": Gaussian(3.0)})
    with pytest.raises(Unsupported, match="add_remove"):
        epsilon(parts, UNITS[2], D)
    for size in (N - 1, N + 1):
        with pytest.raises(Unsupported, match="n_public"):
            epsilon(TruncatedPoissonGaussian(size, 0.05, 70, 1.0, 1), UNITS[1], D)

"""What must hold for every mechanism: order, purity, and agreement between accountants."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from dpft_accounting import Gaussian, Mechanism, PoissonGaussian, Unit, Unsupported, delta, epsilon
from dpft_accounting.accountants import epsilon_of
from dpft_accounting.compose import compose
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLE = Unit("example")
GRID = 1 + 1.1e-3  # PLD may lie 0.1 % above the truth, by an amount that depends on the grid

few = settings(max_examples=8, deadline=None, derandomize=True)
rates = st.floats(-3, -0.2).map(lambda x: 10**x)
sigmas = st.floats(0.5, 6)
counts = st.integers(1, 2000)
deltas = st.floats(-8.5, -2).map(lambda x: 10**x)
poisson = st.builds(PoissonGaussian, rates, sigmas, counts)


def spend(mechanism: Mechanism, d: float = 1e-6) -> float:
    return epsilon(mechanism, EXAMPLE, d).upper


@few
@given(poisson, st.floats(1.01, 3))
def test_epsilon_falls_with_noise(m: PoissonGaussian, factor: float) -> None:
    """E4."""
    assert spend(PoissonGaussian(m.q, m.sigma * factor, m.steps)) <= spend(m) * GRID + 1e-9


@few
@given(poisson, st.integers(1, 1000))
def test_epsilon_grows_with_steps(m: PoissonGaussian, more: int) -> None:
    """E4."""
    assert spend(m) <= spend(m.with_steps(m.steps + more)) * GRID + 1e-9


@few
@given(poisson, st.floats(1.01, 1.5))
def test_epsilon_grows_with_the_sampling_rate(m: PoissonGaussian, factor: float) -> None:
    """E4: up to the full batch."""
    assert spend(m) <= spend(PoissonGaussian(min(m.q * factor, 1.0), m.sigma, m.steps)) * GRID + 1e-9
    assert spend(m) <= spend(Gaussian(m.sigma, m.steps)) * GRID + 1e-9


@few
@given(poisson, deltas, st.floats(1.1, 100))
def test_epsilon_falls_with_delta(m: PoissonGaussian, d: float, factor: float) -> None:
    """E4."""
    assert spend(m, min(d * factor, 0.5)) <= spend(m, d) * GRID + 1e-9


@few
@given(poisson, st.integers(1, 5))
def test_k_equal_runs_are_one_run_of_k_times_the_steps(m: PoissonGaussian, k: int) -> None:
    """E5: composition."""
    assert compose([m] * k, EXAMPLE) == compose([m.with_steps(k * m.steps)], EXAMPLE)


@few
@given(poisson, poisson, st.builds(Gaussian, sigmas, st.integers(1, 5)))
def test_a_composition_costs_more_than_its_parts_and_less_than_their_sum(
    a: PoissonGaussian, b: PoissonGaussian, c: Gaussian
) -> None:
    """E5."""
    total = epsilon_of(compose([a, b, c], EXAMPLE), 3e-6).upper
    assert max(spend(m, 3e-6) for m in (a, b, c)) <= total * GRID + 1e-9
    assert total <= sum(spend(m, 1e-6) for m in (a, b, c)) * GRID + 1e-9


def random_mechanisms(count: int) -> list[PoissonGaussian]:
    draw = random.Random(20)
    return [
        PoissonGaussian(10 ** draw.uniform(-3, -0.3), draw.uniform(0.6, 4), int(10 ** draw.uniform(0, 3.3)))
        for _ in range(count)
    ]


def every_upper_is_above_every_lower(mechanism: PoissonGaussian, d: float) -> None:
    bounds = [epsilon(mechanism, EXAMPLE, d, method=method) for method in ("pld", "prv", "rdp")]  # type: ignore[arg-type]
    assert max(bound.lower for bound in bounds) <= min(bound.upper for bound in bounds)
    assert bounds[1].lower > 0 or bounds[0].upper < 0.1


@pytest.mark.parametrize("mechanism", random_mechanisms(5))
def test_accountants_do_not_contradict_each_other(mechanism: PoissonGaussian) -> None:
    """E4."""
    every_upper_is_above_every_lower(mechanism, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("d", [1e-4, 1e-8])
@pytest.mark.parametrize("mechanism", random_mechanisms(30))
def test_accountants_do_not_contradict_each_other_at_length(mechanism: PoissonGaussian, d: float) -> None:
    """E4."""
    every_upper_is_above_every_lower(mechanism, d)


@pytest.mark.parametrize("method", ["auto", "pld", "prv", "rdp", "analytic"])
@pytest.mark.parametrize("mechanism", [Gaussian(0.0, 3), PoissonGaussian(0.01, 0.0, 3), PoissonGaussian(1, 0, 1)])
def test_no_noise_is_infinite(mechanism: Mechanism, method: str) -> None:
    """E4, F4: σ = 0 protects nobody, by any accountant."""
    assert epsilon(mechanism, EXAMPLE, 1e-6, method=method).lower == math.inf  # type: ignore[arg-type]
    assert delta(mechanism, EXAMPLE, 10.0, method=method).upper == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["auto", "pld", "prv", "rdp", "analytic"])
@pytest.mark.parametrize("mechanism", [Gaussian(0.0, 0), PoissonGaussian(0.01, 1.0, 0)])
def test_no_steps_cost_nothing(mechanism: Mechanism, method: str) -> None:
    """E4."""
    assert epsilon(mechanism, EXAMPLE, 1e-6, method=method).upper == 0  # type: ignore[arg-type]
    assert delta(mechanism, EXAMPLE, 0.0, method=method).upper == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("sigma", [1e-300, 1e-160, 1e-20, 1e-4, 0.01, 0.05, 1e8, 1e200])
@pytest.mark.parametrize("q", [1.0, 0.5, 1e-12])
def test_extreme_noise_gives_a_bound_and_no_crash(sigma: float, q: float) -> None:
    """E4: failures at the ends of the scale; unknown is infinite or analytic, never zero for little noise."""
    found = epsilon(PoissonGaussian(q, sigma, 7), EXAMPLE, 1e-6)
    assert found.upper >= 0
    if sigma <= 0.05 and q == 0.5:
        assert found.upper > 100
    if sigma >= 1e8:
        assert found.upper < 1e-6


@pytest.mark.parametrize(("method", "error"), [("pdl", "one of"), ("gdp", "one of"), (None, "one of")])
def test_an_unknown_method_names_the_known_ones(method: str, error: str) -> None:
    """F4."""
    with pytest.raises(Unsupported, match=error):
        epsilon(Gaussian(1.0), EXAMPLE, 1e-5, method=method)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=error):
        delta(Gaussian(0.0), EXAMPLE, 1.0, method=method)  # type: ignore[arg-type]


def test_results_repeat_exactly() -> None:
    """E4: reads change nothing."""
    mechanism = PoissonGaussian(0.02, 0.9, 200)
    first = [epsilon(mechanism, EXAMPLE, 1e-6), delta(mechanism, EXAMPLE, 1.0)]
    epsilon(PoissonGaussian(0.3, 0.9, 7), EXAMPLE, 1e-3, method="rdp")
    assert [epsilon(mechanism, EXAMPLE, 1e-6), delta(mechanism, EXAMPLE, 1.0)] == first


def test_the_small_delta_regimes_use_the_accountant_that_reaches_them() -> None:
    """E4: float64 noise makes PLD unsound below 1e-9, long double ends near 1e-12."""
    mechanism = PoissonGaussian(0.01, 0.8, 50)
    methods = [epsilon(mechanism, EXAMPLE, d).method for d in (1e-9, 1e-10, 1e-13)]
    assert methods == ["pld", "prv", "rdp"]
    values = [epsilon(mechanism, EXAMPLE, d).upper for d in (1e-9, 1e-10, 1e-13)]
    assert values == sorted(values)
    profile = [delta(mechanism, EXAMPLE, eps) for eps in (1.0, 3.0, 4.0, 8.0)]
    assert [bound.method for bound in profile] == ["pld", "pld", "prv", "rdp"]
    assert all(a.upper > b.upper for a, b in pairwise(profile))


def test_pld_alone_warns_where_float_noise_matters() -> None:
    found = epsilon(PoissonGaussian(0.01, 0.8, 50), EXAMPLE, 1e-11, method="pld")
    assert any("float64" in flag for flag in found.flags)


def test_replace_has_no_answer_for_tiny_delta() -> None:
    """E6: only PLD knows Poisson under replace, so below its reach the question is refused, not guessed."""
    unit = Unit("example", "replace", 1000)
    mechanism = PoissonGaussian(0.01, 0.8, 50)
    with pytest.raises(Unsupported, match="1e-09"):
        epsilon(mechanism, unit, 1e-10)
    found = delta(mechanism, unit, 60.0)
    assert found.upper == 1e-9
    assert found.flags
    with pytest.raises(Unsupported, match="use pld"):
        epsilon(mechanism, unit, 1e-6, method="rdp")

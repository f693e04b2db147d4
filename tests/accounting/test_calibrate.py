"""Calibration ends on the private side, always."""

from __future__ import annotations

import math
import time

import pytest
from dpft_accounting import (
    AccountingError,
    Budget,
    Gaussian,
    PoissonGaussian,
    Unit,
    Unsupported,
    epsilon,
    max_steps,
    noise_multiplier,
)
from dpft_accounting.bound import Bound
from dpft_accounting.calibrate import fits
from dpft_accounting.search import search
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLE = Unit("example")
few = settings(max_examples=8, deadline=None, derandomize=True)


@few
@given(
    eps=st.floats(-1, 1.3).map(lambda x: 10**x),
    delta=st.floats(-8, -4).map(lambda x: 10**x),
    q=st.floats(-3, -0.3).map(lambda x: 10**x),
    steps=st.integers(1, 3000),
)
def test_the_noise_keeps_the_target(eps: float, delta: float, q: float, steps: int) -> None:
    """E4: never above the target, and at most 0.1 % below it unless the least noise was reached."""
    found = noise_multiplier(eps, delta, q, steps, EXAMPLE)
    assert found.bound.upper <= eps
    assert found.bound.upper >= eps * (1 - 1e-3) or found.value == 0.05
    assert found.bound == epsilon(PoissonGaussian(q, found.value, steps), EXAMPLE, delta)
    assert float(f"{found.value:.5e}") == found.value


@few
@given(eps=st.floats(0.01, 50), delta=st.floats(1e-12, 1e-2), steps=st.integers(1, 10**6))
def test_the_noise_of_full_batches_is_right_to_six_digits(eps: float, delta: float, steps: int) -> None:
    """E4: closed form."""
    for unit in (EXAMPLE, Unit("example", "replace", 50)):
        found = noise_multiplier(eps, delta, 1.0, steps, unit)
        assert found.bound.upper <= eps
        assert epsilon(Gaussian(found.value * (1 - 2e-5), steps), unit, delta).upper > eps


@pytest.mark.parametrize(
    ("eps", "delta", "unit"),
    [
        (8.0, 7.4e-6, Unit("example", "zero_out", 67349)),
        (4.822, 1e-6, Unit("example", "replace", 10**5)),
        (3.0, 1e-10, EXAMPLE),
        (3.0, 1e-14, EXAMPLE),
    ],
)
def test_the_noise_keeps_the_target_under_every_rule(eps: float, delta: float, unit: Unit) -> None:
    """E4, E6: other adjacencies, and the δ regimes of PRV and RDP."""
    found = noise_multiplier(eps, delta, 0.01, 100, unit)
    assert eps * (1 - 1e-3) <= found.bound.upper <= eps


def test_known_noise() -> None:
    assert noise_multiplier(8, 7.4e-6, 1024 / 67349, 1315, EXAMPLE).value == pytest.approx(0.6993, abs=2e-4)
    replace = noise_multiplier(4.822, 1e-6, 0.01, 1000, Unit("example", "replace", 10**5))
    assert replace.value == pytest.approx(0.8, rel=1e-3)


def test_calibration_is_quick() -> None:
    """A planner calls it while somebody waits; a second is typical, five the limit for a busy machine."""
    start = time.perf_counter()
    noise_multiplier(3, 1e-6, 0.01, 1000, EXAMPLE)
    assert time.perf_counter() - start < 5


def test_no_steps_need_no_noise() -> None:
    assert noise_multiplier(1, 1e-6, 0.1, 0, EXAMPLE).value == 0


def test_a_target_that_any_noise_meets_ends_at_the_least_noise() -> None:
    """E4: q·steps < δ, so even no noise at all would do; the search must still end."""
    found = noise_multiplier(1.0, 1e-3, 1e-9, 10, EXAMPLE)
    assert found.value == 0.05
    assert found.bound.upper <= 1


@pytest.mark.parametrize("q", [0.01, 0.3, 1.0])
def test_the_steps_keep_the_target(q: float) -> None:
    """E5: at most the target, and one percent more steps pass it."""
    steps = max_steps(3.0, 1e-6, q, 4.0, EXAMPLE)
    assert epsilon(PoissonGaussian(q, 4.0, steps), EXAMPLE, 1e-6).upper <= 3
    assert epsilon(PoissonGaussian(q, 4.0, int(steps * 1.01) + 1), EXAMPLE, 1e-6).upper > 3 * (1 - 1e-3)


def test_steps_are_exact_where_they_are_few() -> None:
    """E5."""
    steps = max_steps(8.0, 1e-6, 1.0, 6.0, EXAMPLE)
    assert epsilon(Gaussian(6.0, steps), EXAMPLE, 1e-6).upper <= 8
    assert epsilon(Gaussian(6.0, steps + 1), EXAMPLE, 1e-6).lower > 8
    assert max_steps(20.0, 1e-6, 1e-4, 0.208631, EXAMPLE) == 100


def test_no_step_fits() -> None:
    """E5."""
    assert max_steps(1.0, 1e-6, 0.5, 0.5, EXAMPLE) == 0
    assert max_steps(1.0, 1e-6, 0.5, 0.0, EXAMPLE) == 0


def test_very_many_steps_fit() -> None:
    assert max_steps(1.0, 1e-6, 1.0, 1e9, EXAMPLE) == 10**9


def test_a_calibrated_run_fits_its_own_budget() -> None:
    """E5: what the planner chose, the ledger accepts, at whatever tolerance it was found."""
    for rtol in (1e-2, 1e-3, 1e-4):
        noise = noise_multiplier(2.0, 1e-5, 0.02, 500, EXAMPLE, rtol=rtol)
        assert fits([PoissonGaussian(0.02, noise.value, 500)], EXAMPLE, Budget(2.0, 1e-5))


@pytest.mark.parametrize(
    ("eps", "delta", "q", "steps"),
    [(0, 1e-6, 0.1, 1), (math.inf, 1e-6, 0.1, 1), (1, 0, 0.1, 1), (1, 1e-6, 0, 1), (1, 1e-6, 0.1, 1.5)],
)
def test_a_meaningless_target_is_refused(eps: float, delta: float, q: float, steps: int) -> None:
    """F4."""
    with pytest.raises(AccountingError, match="Expected"):
        noise_multiplier(eps, delta, q, steps, EXAMPLE)


@pytest.mark.parametrize("rtol", [0, -1, 0.5, math.nan])
def test_a_meaningless_tolerance_is_refused(rtol: float) -> None:
    """F4."""
    with pytest.raises(AccountingError, match="rtol"):
        noise_multiplier(1, 1e-6, 0.1, 10, EXAMPLE, rtol=rtol)


def bound_of(value: float) -> Bound:
    return Bound(0.0, value, "rdp", {})


@given(st.floats(0.2, 5), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_search_solves_power_laws(power: float, start: float, target: float) -> None:
    """E4: private side, within the tolerance."""
    found = search(lambda x: bound_of(x**-power), start, target, rtol=1e-3, slope=-1, snap=lambda x: x)
    assert target * (1 - 1e-3) <= found.bound.upper <= target


@given(st.integers(1, 10**6), st.floats(1, 1e6))
def test_the_search_survives_a_staircase(edge: int, start: float) -> None:
    """E4: a jump leaves no value near the target; the nearest private one is returned."""
    found = search(
        lambda x: bound_of(1.0 if x <= edge else 100.0),
        start,
        50.0,
        rtol=1e-3,
        slope=1,
        snap=lambda x: float(max(1, int(x))),  # as max_steps rounds
    )
    assert found.value <= edge
    assert found.bound.upper == 1.0


def test_the_search_gives_up_with_a_reason() -> None:
    with pytest.raises(Unsupported, match="larger epsilon"):
        search(lambda x: bound_of(9.0), 1.0, 1.0, rtol=1e-3, slope=-1, snap=lambda x: x)

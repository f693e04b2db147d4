"""Five hundred random settings: no accountant's upper bound is below another's lower bound, opacus's included."""

from __future__ import annotations

import math
import random
import warnings
from itertools import product

import pytest
from dpft_accounting import Bound, Gaussian, PoissonGaussian, Unit, Unsupported, epsilon
from dpft_accounting.accountants import Method

Setting = tuple[PoissonGaussian, float]

EXAMPLE = Unit("example")
METHODS: tuple[Method, ...] = ("auto", "pld", "prv", "rdp", "analytic")
ORDERS = [1.05, 1.1, *(1 + k / 5 for k in range(1, 20)), *range(5, 64), 80, 128, 256, 512]
ROUNDING = 1 + 1e-9


def settings(count: int) -> list[Setting]:
    """q, σ, T and δ log-uniform; every tenth a full batch, which q log-uniform would never be."""
    draw = random.Random(2026)
    found = []
    for index in range(count):
        q, sigma, steps, delta = (
            10 ** draw.uniform(math.log10(low), math.log10(high))
            for low, high in ((1e-4, 1), (0.4, 20), (1, 1e4), (1e-8, 1e-4))
        )
        found.append((PoissonGaussian(1.0 if index % 10 == 9 else q, sigma, round(steps)), delta))
    return found


def is_quick(setting: Setting) -> bool:
    """PRV takes half a second here, and up to a minute at tiny and at huge ε."""
    m = setting[0]
    spread = min(m.q * math.sqrt(math.expm1(m.sigma**-2)), 1 / m.sigma) * math.sqrt(m.steps)
    return m.q < 1 and 0.4 <= spread <= 2 and m.steps <= 1000


FULL = [setting for setting in settings(500) if setting[0].q == 1]
QUICK = [setting for setting in settings(500) if is_quick(setting)][:18] + FULL[:22]
REST = [setting for setting in settings(500) if setting not in QUICK]


def opacus(mechanism: PoissonGaussian, delta: float) -> float:
    """Another Rényi accountant, with a δ of its own conversion; an upper bound at any set of orders."""
    from opacus.accountants.analysis import rdp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says when the best order is the first or the last
        curve = rdp.compute_rdp(q=mechanism.q, noise_multiplier=mechanism.sigma, steps=mechanism.steps, orders=ORDERS)
        return float(rdp.get_privacy_spent(orders=ORDERS, rdp=curve, delta=delta)[0])


def bounds(mechanism: PoissonGaussian, delta: float) -> dict[str, Bound]:
    """Every accountant's answer; those that refuse are left out."""
    found: dict[str, Bound] = {"opacus": Bound(0.0, max(0.0, opacus(mechanism, delta)), "opacus", {})}
    for method in METHODS:
        try:
            found[method] = epsilon(mechanism, EXAMPLE, delta, method=method)
        except Unsupported:
            assert method not in ("auto", "rdp")  # these two always have an answer
    return found


def margins(found: dict[str, Bound]) -> dict[tuple[str, str], float]:
    """ln(upper / lower) of every accountant's upper against every other's lower bound."""
    return {
        (above, below): math.log(max(found[above].upper, 1e-300) / found[below].lower)
        for above, below in product(found, found)
        if above != below and found[below].lower > 0
    }


def no_contradiction(mechanism: PoissonGaussian, delta: float) -> None:
    found = bounds(mechanism, delta)
    slack = -math.log(ROUNDING) if mechanism.q == 1 else 0.0  # the closed form is exact, to its last digits
    worst = min(margins(found).items(), key=lambda item: item[1], default=(("", ""), 0.0))
    assert worst[1] >= slack, (worst, found)
    if mechanism.q == 1:
        assert found["analytic"].lower > 0 or found["analytic"].upper == 0
        assert found["auto"] == found["analytic"]


@pytest.mark.parametrize(("mechanism", "delta"), QUICK, ids=str)
def test_no_upper_bound_is_below_a_lower_bound(mechanism: PoissonGaussian, delta: float) -> None:
    """E4."""
    no_contradiction(mechanism, delta)


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "delta"), REST, ids=str)
def test_no_upper_bound_is_below_a_lower_bound_at_length(mechanism: PoissonGaussian, delta: float) -> None:
    """E4."""
    no_contradiction(mechanism, delta)


def test_the_settings_can_tell_a_wrong_accountant() -> None:
    """A tenth of the steps forgotten is below PRV's lower bound in most of the settings, so all of this can fail."""
    asked = [setting for setting in QUICK if setting[0].steps >= 50 and setting[0].q < 0.2][:4]
    caught = 0
    for mechanism, delta in asked:
        lower = epsilon(mechanism, EXAMPLE, delta, method="prv").lower
        forgetful = mechanism.with_steps(mechanism.steps * 9 // 10)
        caught += epsilon(forgetful, EXAMPLE, delta).upper < lower
    assert len(asked) == 4
    assert caught >= 3


def test_full_batches_know_their_own_digits() -> None:
    mechanism, delta = Gaussian(3.0, 40), 1e-6
    found = {method: epsilon(mechanism, EXAMPLE, delta, method=method) for method in ("pld", "rdp", "analytic")}  # type: ignore[arg-type]
    assert found["analytic"].lower < found["pld"].upper < found["analytic"].upper * 1.001
    assert found["analytic"].lower < found["rdp"].upper

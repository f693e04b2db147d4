"""Arithmetic of discrete losses against sums over every outcome and explicit convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from dpft_accounting.losses import Loss, Pair, TooLarge, from_profile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

Array = NDArray[np.float64]

ROUNDING = 1e-13  # FFTs of masses up to 1, and 1e-15 a composition may cut off, a few times over
some = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def losses(draw: st.DrawFn, dx: float | None = None) -> Loss:
    """Up to eight cells anywhere, cells without mass among them, and perhaps an infinite loss."""
    weights = draw(st.lists(st.sampled_from([0.0, 1e-9, 1e-3, 0.2, 1.0, 3.0]), min_size=1, max_size=8))
    weights = weights if any(weights) else [1.0]
    infinity = draw(st.sampled_from([0.0, 1e-12, 1e-4, 0.3]))
    mass = np.array(weights) / sum(weights) * (1 - infinity)
    return Loss(dx or draw(st.sampled_from([0.01, 0.125, 0.7])), draw(st.integers(-12, 12)), mass, infinity)


def direct(loss: Loss, eps: float) -> float:
    """Σ p·(1 − e^(ε − ℓ))₊ over the finite losses, and the infinite ones."""
    values = (loss.low + np.arange(len(loss.mass))) * loss.dx
    return loss.infinity + math.fsum(loss.mass * np.maximum(-np.expm1(np.minimum(eps - values, 0.0)), 0.0))


def convolved(loss: Loss, times: int) -> Loss:
    mass = loss.mass
    for _ in range(times - 1):
        mass = np.convolve(mass, loss.mass)
    return Loss(loss.dx, loss.low * times, mass, 1 - (1 - loss.infinity) ** times)


def same(found: Loss, exact: Loss) -> None:
    """Equal δ everywhere; up to rounding, never below."""
    top = max((exact.low + len(exact.mass)) * exact.dx, 0.0) + 2 * exact.dx
    for eps in (*np.linspace(0, top, 40), *(exact.dx * k for k in range(8))):
        assert direct(exact, eps) - 1e-15 <= direct(found, eps) + ROUNDING / 10
        assert direct(found, eps) <= direct(exact, eps) + ROUNDING


@some
@given(losses())
def test_delta_is_the_sum_over_outcomes(loss: Loss) -> None:
    """E4: from two running sums, at any ε and any shape."""
    eps = np.concatenate([np.linspace(0, 25 * loss.dx, 60), loss.dx * np.arange(25)]).reshape(5, 17)
    expected = [[direct(loss, float(e)) for e in row] for row in eps]
    assert loss.delta(eps) == pytest.approx(np.array(expected), rel=1e-12, abs=1e-15)


@some
@given(losses(), st.integers(1, 12))
def test_power_is_repeated_convolution(loss: Loss, times: int) -> None:
    """E5."""
    same(loss.power(times), convolved(loss, times))


def test_power_of_many_is_a_binomial_and_stays_above_it() -> None:
    """E5: a coin tossed 5000 times, far more than the window keeps; nothing that is cut off is forgotten."""
    from scipy.stats import binom

    found = Loss(0.01, -1, np.array([0.4, 0.0, 0.6]), 0.0).power(5000)
    heads = np.arange(5001)
    values, mass = (2 * heads - 5000) * 0.01, binom.pmf(heads, 5000, 0.6)
    for eps in (0.0, 9.0, 10.0, 12.0, 13.0):
        exact = math.fsum(mass * np.maximum(-np.expm1(np.minimum(eps - values, 0.0)), 0.0))
        got = float(found.delta(np.array([eps]))[0])
        assert exact - 1e-15 <= got <= exact + 3e-13


@some
@given(st.sampled_from([0.01, 0.5]).flatmap(lambda dx: st.tuples(losses(dx), losses(dx), losses(dx))))
def test_composition_is_the_sum_of_independent_losses(three: tuple[Loss, Loss, Loss]) -> None:
    """E5: every pair of outcomes; the order does not matter."""
    a, b, c = three
    exact = Loss(a.dx, a.low + b.low, np.convolve(a.mass, b.mass), 1 - (1 - a.infinity) * (1 - b.infinity))
    same(a.compose(b), exact)
    same(a.compose(b).compose(c), c.compose(a).compose(b))
    same(a.compose(a).compose(a), a.power(3))


@some
@given(
    st.sampled_from([0.01, 0.5]).flatmap(lambda dx: st.tuples(losses(dx), losses(dx))), st.floats(0, 1), st.floats(0, 9)
)
def test_a_mixture_of_losses_mixes_delta(two: tuple[Loss, Loss], weight: float, eps: float) -> None:
    """δ is linear in the distribution of the loss."""
    a, b = two
    expected = weight * direct(a, eps) + (1 - weight) * direct(b, eps)
    assert float(a.mixed(b, weight).delta(np.array([eps]))[0]) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@some
@given(losses(), st.floats(-11, -0.05).map(lambda v: 10**v))
def test_epsilon_undoes_delta(loss: Loss, delta: float) -> None:
    """E4: δ at the ε found is the δ asked for; any smaller ε has more."""
    eps = loss.epsilon(delta)
    if math.isinf(eps):
        assert loss.infinity > delta
        return
    assert direct(loss, eps) <= delta * (1 + 1e-12) + 1e-15
    if eps > 0:
        assert direct(loss, eps * (1 - 1e-9) - 1e-12) >= delta * (1 - 1e-9)


@given(losses())
def test_infinite_losses_never_become_finite(loss: Loss) -> None:
    """E4: below the infinite mass there is no ε, at it there is."""
    assert loss.delta(np.array([1e6, 1e300])) == pytest.approx([loss.infinity] * 2, abs=1e-15)
    if loss.infinity:
        assert loss.epsilon(loss.infinity * 0.999) == math.inf
        assert loss.epsilon(loss.infinity) < math.inf
        assert loss.power(7).epsilon(-math.expm1(7 * math.log1p(-loss.infinity)) * 0.999) == math.inf


@pytest.mark.parametrize("at", [500.0, 709.0, 710.0, 5000.0])
def test_losses_past_the_largest_exponential_are_finite(at: float) -> None:
    """E4: e^710 is no float64, and yet ε = 5000 is a number, from above and from below."""
    loss = Loss(0.01, round(at / 0.01), np.array([0.25, 0.0, 0.0, 0.0, 0.75]), 0.0)
    assert loss.epsilon(1e-9) == pytest.approx(at + 0.04, abs=1e-6)
    assert loss.epsilon(0.9) < at
    for eps in (0.0, at - 1, at, at + 0.02, at + 0.05, 2 * at):
        assert float(loss.delta(np.array([eps]))[0]) == pytest.approx(direct(loss, eps), rel=1e-9, abs=1e-14)
    twice = loss.power(2)
    assert twice.epsilon(1e-9) == pytest.approx(2 * at + 0.08, abs=1e-6)


def test_a_loss_that_does_not_fit_is_refused() -> None:
    wide = Loss(1e-5, 0, np.full(10**5, 1e-5), 0.0)
    with pytest.raises(TooLarge):
        wide.power(10**6)
    with pytest.raises(TooLarge):
        from_profile(lambda eps: 0 * eps, 1e-6, 100.0)


def gaussian_profile(mu: float) -> Callable[[Array], Array]:
    return lambda eps: norm.cdf(mu / 2 - eps / mu) - np.exp(eps) * norm.cdf(-mu / 2 - eps / mu)


def stated(eps0: float, delta0: float) -> Callable[[Array], Array]:
    return lambda eps: delta0 + (1 - delta0) * np.maximum(math.exp(eps0) - np.exp(eps), 0) / (1 + math.exp(eps0))


PROFILES = [
    (gaussian_profile(1.0), 8.0),
    (gaussian_profile(0.2), 2.0),
    (stated(0.7, 1e-3), 1.0),
    (lambda eps: np.maximum(stated(0.2, 0.1)(eps), stated(2.0, 0.0)(eps)), 2.5),
    (lambda eps: 0.5 * gaussian_profile(2.0)(eps) + 0.5 * stated(1.0, 0.01)(eps), 16.0),
]


@pytest.mark.parametrize("dx", [1e-2, 0.03, 0.2])
@pytest.mark.parametrize(("profile", "reach"), PROFILES)
def test_a_loss_made_from_a_profile_has_that_profile(
    profile: Callable[[Array], Array], reach: float, dx: float
) -> None:
    """E4: exact at grid points, above it between them, and constant past its reach, where it counts as infinite."""
    pair = from_profile(profile, dx, reach)
    top = math.ceil(reach / dx)
    at = np.arange(top + 1) * dx
    assert pair.remove.delta(at) == pytest.approx(profile(at), rel=1e-9, abs=1e-13)
    between = np.linspace(0, reach, 997)
    assert np.all(pair.delta(between) >= profile(between) - 1e-13)
    assert pair.delta(np.array([reach + 1, 50.0])) == pytest.approx([float(profile(at[-1:])[0])] * 2, rel=1e-9)
    assert pair.remove.mass.sum() + pair.remove.infinity == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_a_profile_composes_as_the_mechanism_that_it_came_from(mu: float) -> None:
    """E5: nine steps of what is only known by its profile are the Gaussian of three times μ, from above."""
    found = from_profile(gaussian_profile(mu), 1e-3, mu * mu / 2 + 7.5 * mu).each(lambda loss: loss.power(9))
    eps = np.linspace(0, 6 * mu, 9)
    exact = gaussian_profile(3 * mu)(eps)
    assert np.all(found.delta(eps) >= exact)
    assert found.delta(eps) == pytest.approx(exact, rel=3e-3, abs=1e-11)


def test_a_pair_keeps_its_directions_apart() -> None:
    left = Loss(0.1, 0, np.array([0.5, 0.5]), 0.0)
    right = Loss(0.1, 3, np.array([1.0]), 0.0)
    pair = Pair(left, right)
    eps = np.array([0.0, 0.05, 0.2])
    assert pair.delta(eps) == pytest.approx([max(direct(left, e), direct(right, e)) for e in eps])
    assert pair.epsilon(0.01) == max(left.epsilon(0.01), right.epsilon(0.01))
    crossed = pair.compose(pair.reversed())
    same(crossed.remove, left.compose(right))
    same(crossed.add, right.compose(left))

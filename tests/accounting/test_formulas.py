"""Accountants against formulas that can be written down: full batches, and single Poisson steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dpft_accounting import Gaussian, PoissonGaussian, Unit, analytic, delta, epsilon, pld
from dpft_accounting.compose import compose
from scipy.integrate import quad
from scipy.stats import norm

EXAMPLE = Unit("example")
REPLACE = Unit("example", "replace", 10**5)


def one_step_remove(eps: float, q: float, sigma: float) -> float:
    """δ of one Poisson Gaussian step: the data set with the unit against the one without."""
    x = sigma**2 * math.log((math.exp(eps) - 1 + q) / q) + 0.5
    with_unit = (1 - q) * norm.sf(x / sigma) + q * norm.sf((x - 1) / sigma)
    return float(with_unit - math.exp(eps) * norm.sf(x / sigma))


def one_step_add(eps: float, q: float, sigma: float) -> float:
    """The other direction; zero once e^−ε <= 1 − q."""
    if math.exp(-eps) <= 1 - q:
        return 0.0
    x = sigma**2 * math.log((math.exp(-eps) - 1 + q) / q) + 0.5
    with_unit = (1 - q) * norm.cdf(x / sigma) + q * norm.cdf((x - 1) / sigma)
    return float(norm.cdf(x / sigma) - math.exp(eps) * with_unit)


def test_the_reference_formulas_have_their_known_values() -> None:
    assert one_step_remove(0.5, 0.2, 0.9) == pytest.approx(0.0187067, abs=1e-7)
    assert one_step_add(0.2, 0.2, 0.9) == pytest.approx(4.35467e-4, abs=1e-9)
    assert one_step_remove(0, 0.2, 0.9) == pytest.approx(0.0842971, abs=1e-7)


@pytest.mark.parametrize(("q", "sigma"), [(0.2, 0.9), (0.01, 0.6), (0.7, 3.0), (0.001, 1.0)])
@pytest.mark.parametrize("eps", [0.0, 0.2, 0.5, 2.0])
def test_one_poisson_step_is_exact(q: float, sigma: float, eps: float) -> None:
    """E4: no less than the exact profile of either direction, no more than the grid explains."""
    exact = max(one_step_remove(eps, q, sigma), one_step_add(eps, q, sigma))
    found = delta(PoissonGaussian(q, sigma, 1), EXAMPLE, eps, method="pld").upper
    assert exact * (1 - 1e-9) - 1e-13 <= found <= exact * 1.002 + 1e-9


def test_one_poisson_step_has_the_known_epsilon() -> None:
    assert epsilon(PoissonGaussian(0.2, 0.9, 1), EXAMPLE, 1e-5).upper == pytest.approx(2.946593, rel=1e-3)


def test_pld_covers_both_directions() -> None:
    """E4: neither direction alone may be reported as the guarantee."""
    from dp_accounting.pld import privacy_loss_distribution as library

    part = library.from_gaussian_mechanism(0.9, sampling_prob=0.2, value_discretization_interval=1e-3)
    both = part.self_compose(20)
    remove, add = (side.get_epsilon_for_delta(1e-5) for side in (both._pmf_remove, both._pmf_add))
    assert remove != add
    assert epsilon(PoissonGaussian(0.2, 0.9, 20), EXAMPLE, 1e-5).upper >= max(remove, add) * (1 - 1e-3)


@pytest.mark.parametrize("eps", [0.1, 1.0, 3.0])
def test_one_poisson_step_under_replace_is_the_integral(eps: float) -> None:
    """E6: replace-one uses twice the clip norm, also inside a Poisson sample."""
    q, sigma = 0.3, 1.2

    def integrand(x: float) -> float:
        rest = (1 - q) * norm.pdf(x, 0, sigma)
        old, new = rest + q * norm.pdf(x, 1, sigma), rest + q * norm.pdf(x, -1, sigma)
        return float(max(old - math.exp(eps) * new, 0.0))

    exact = quad(integrand, -12, 14, limit=400, points=[0, 0.5, 1, 2, 4], epsabs=1e-13)[0]
    found = delta(PoissonGaussian(q, sigma, 1), REPLACE, eps).upper
    assert exact * (1 - 1e-6) <= found <= exact * 1.005 + 1e-9


@pytest.mark.parametrize("mu", [1e-4, 0.01, 0.3, 1.0, 4.0, 30.0, 300.0])
@pytest.mark.parametrize("d", [1e-2, 1e-5, 1e-12, 1e-30, 1e-200])
def test_the_closed_form_inverts_itself(mu: float, d: float) -> None:
    """E4: δ(ε(δ)) = δ wherever ε > 0, down to δ that only log space can hold."""
    eps = analytic.epsilon_of(d, mu)
    if eps == 0:
        assert analytic.log_delta(0.0, mu) <= math.log(d)
    else:
        assert analytic.log_delta(eps, mu) == pytest.approx(math.log(d), rel=1e-8)
        assert analytic.mu_of(eps, d) == pytest.approx(mu, rel=1e-8)


@pytest.mark.parametrize(
    ("sigma", "steps", "d"), [(1.0, 1, 1e-5), (10.0, 100, 1e-6), (0.7, 3, 1e-4), (40.0, 500, 1e-8)]
)
def test_the_closed_form_agrees_with_pld_at_full_batch(sigma: float, steps: int, d: float) -> None:
    """E4: two independent ways to 1e-6; PLD on a fine grid, and above."""
    exact = epsilon(Gaussian(sigma, steps), EXAMPLE, d)
    fine = pld.epsilon(compose([Gaussian(sigma, steps)], EXAMPLE)[0], d, rtol=1e-7).upper
    assert exact.method == "analytic"
    assert exact.lower * (1 - 1e-9) <= fine <= exact.upper * (1 + 1e-6)


def test_full_batches_are_the_same_however_they_are_written() -> None:
    poisson, full = PoissonGaussian(1.0, 2.0, 9), Gaussian(2.0, 9)
    assert epsilon(poisson, EXAMPLE, 1e-6) == epsilon(full, EXAMPLE, 1e-6)
    assert delta(poisson, EXAMPLE, 1.0) == delta(full, EXAMPLE, 1.0)


def test_replace_at_full_batch_is_half_the_noise() -> None:
    """E6: σ = 8 over 16 full batches at δ = 1e-6 is ε 4.887, not the 2.42 of a library's RDP."""
    found = epsilon(Gaussian(8.0, 16), REPLACE, 1e-6)
    assert found.upper == epsilon(Gaussian(4.0, 16), EXAMPLE, 1e-6).upper
    assert found.upper == pytest.approx(4.887, abs=1e-3)
    assert epsilon(Gaussian(8.0, 16), REPLACE, 1e-6, method="rdp").upper >= found.lower
    assert epsilon(Gaussian(8.0, 16), REPLACE, 1e-6, method="pld").upper == pytest.approx(found.upper, rel=1e-3)


def test_poisson_under_replace_costs_more() -> None:
    """E6: the known pair 3.706 and 4.822."""
    mechanism = PoissonGaussian(0.01, 0.8, 1000)
    assert epsilon(mechanism, EXAMPLE, 1e-6).upper == pytest.approx(3.706, rel=1e-3)
    assert epsilon(mechanism, REPLACE, 1e-6).upper == pytest.approx(4.822, rel=1e-3)


def test_zero_out_has_the_numbers_of_add_remove() -> None:
    zero_out = Unit("example", "zero_out", 10**5)
    for mechanism in (PoissonGaussian(0.01, 0.8, 100), Gaussian(3.0, 4)):
        assert epsilon(mechanism, zero_out, 1e-6) == epsilon(mechanism, EXAMPLE, 1e-6)


@pytest.mark.parametrize("method", ["pld", "prv", "rdp", "auto"])
def test_delta_and_epsilon_are_inverse(method: str) -> None:
    """E4: δ at the reported ε is the δ that was asked for, up to each accountant's own error."""
    mechanism = PoissonGaussian(0.01, 0.8, 500)
    eps = epsilon(mechanism, EXAMPLE, 1e-6, method=method)  # type: ignore[arg-type]
    found = delta(mechanism, EXAMPLE, eps.upper, method=method)  # type: ignore[arg-type]
    assert found.lower <= 1e-6 * 1.01
    assert found.upper == pytest.approx(1e-6, rel=0.2)


def renyi(order: int, q: float, sigma: float) -> float:
    """Rényi divergence of one step at an integer order, summed directly (Mironov et al. 2019)."""
    terms = (
        math.comb(order, k) * (1 - q) ** (order - k) * q**k * math.exp(k * (k - 1) / (2 * sigma**2))
        for k in range(order + 1)
    )
    return math.log(math.fsum(terms)) / (order - 1)


def test_rdp_is_the_textbook_bound() -> None:
    """E4: never above the bound from integer orders alone, and close to it."""
    q, sigma, steps, d = 0.02, 1.3, 300, 1e-5
    textbook = min(
        steps * renyi(a, q, sigma) + math.log(1 - 1 / a) - (math.log(d) + math.log(a)) / (a - 1) for a in range(2, 30)
    )
    found = epsilon(PoissonGaussian(q, sigma, steps), EXAMPLE, d, method="rdp").upper
    assert textbook * 0.98 <= found <= textbook * (1 + 1e-9)


def test_a_million_nearly_free_steps_are_not_free() -> None:
    """E4: the library's Rényi divergence rounds to zero or below here, which once meant ε = 0."""
    mechanism = PoissonGaussian(1e-6, 1000.0, 10**6)
    advantage = math.sqrt(10**6) * 1e-6 / 1000 * norm.pdf(0)  # central limit of δ(0), about 4e-7
    assert delta(mechanism, EXAMPLE, 0.0, method="rdp").upper >= advantage
    assert np.isfinite(epsilon(mechanism, EXAMPLE, 1e-8, method="rdp").upper)

"""Attack risk as a target, and the shape of attack power."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from dpft_accounting import AccountingError, Gaussian, PoissonGaussian, Risk, Unit, calibrate, profile
from scipy.stats import norm

EXAMPLE = Unit("example")
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5)


def gaussian_power(alpha: float, mu: float) -> float:
    return float(norm.cdf(norm.ppf(alpha) + mu))


@pytest.mark.parametrize("mu", [0.01, 1.0, 5.0])
def test_full_batches_are_exact(mu: float) -> None:
    found = profile(Gaussian(1 / mu), EXAMPLE)
    assert found.advantage() == pytest.approx(2 * norm.cdf(mu / 2) - 1, rel=1e-9)
    for alpha in RATES:
        assert found.tpr(alpha) == pytest.approx(gaussian_power(alpha, mu), rel=1e-6)


def test_power_is_monotone_concave_and_between_guessing_and_certainty() -> None:
    found = profile(PoissonGaussian(0.02, 0.8, 300), EXAMPLE)
    rates = [0.0, *np.geomspace(1e-6, 1, 40)]
    powers = [found.tpr(float(a)) for a in rates]
    assert all(b >= a for a, b in zip(rates, powers, strict=True))
    assert all(later >= sooner - 1e-12 for sooner, later in pairwise(powers))
    slopes = np.diff(powers) / np.diff(rates)
    assert np.all(np.diff(slopes) <= 1e-3 * slopes[:-1] + 1e-9)
    assert powers[-1] == 1
    assert max(b - a for a, b in zip(rates, powers, strict=True)) <= found.advantage() + 1e-9


@pytest.mark.parametrize(
    "risk", [Risk(advantage=0.1), Risk(advantage=0.9), Risk(tpr=0.02, fpr=0.01), Risk(tpr=1e-4, fpr=1e-6)]
)
def test_calibration_to_a_risk_of_full_batches_is_the_closed_form(risk: Risk) -> None:
    found = calibrate(lambda sigma: Gaussian(sigma, 4), EXAMPLE, risk)
    assert 2 / found.value == pytest.approx(risk.mu, rel=1e-5)
    assert found.bound.upper <= (risk.advantage or risk.tpr or 0)


@pytest.mark.parametrize("vary", ["noise", "steps", "rate"])
def test_calibration_to_a_risk_ends_on_the_private_side(vary: str) -> None:
    makers = {
        "noise": lambda s: PoissonGaussian(0.02, s, 300),
        "steps": lambda s: PoissonGaussian(0.02, 1.0, int(s)),
        "rate": lambda s: PoissonGaussian(s, 1.0, 300),
    }
    for risk, of in ((Risk(advantage=0.2), "advantage"), (Risk(tpr=0.05, fpr=0.01), "tpr")):
        found = calibrate(makers[vary], EXAMPLE, risk, vary=vary)  # type: ignore[arg-type]
        reached = profile(makers[vary](found.value), EXAMPLE)
        value = reached.advantage() if of == "advantage" else reached.tpr(0.01)
        limit = risk.advantage or risk.tpr or 0.0
        assert 0.98 * limit <= value <= limit
        assert value == found.bound.upper


@pytest.mark.parametrize(
    "given", [{}, {"advantage": 0.1, "tpr": 0.2}, {"tpr": 0.2}, {"fpr": 0.2}, {"advantage": 0}, {"advantage": 1.0},
              {"tpr": 0.1, "fpr": 0.2}, {"advantage": math.nan}, {"advantage": True}, {"tpr": 0.1, "fpr": 0.0}],
)  # fmt: skip
def test_a_risk_that_makes_no_sense_is_refused(given: dict[str, float]) -> None:
    """F4."""
    with pytest.raises(AccountingError):
        Risk(**given)

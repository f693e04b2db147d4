"""Regression rows on which prv-accountant 0.2.0 as shipped raises, or is silently wrong by up to 3."""

from __future__ import annotations

import pytest
from dpft_accounting import Gaussian, PoissonGaussian, Unit, Unsupported, analytic, epsilon, pld, prv
from dpft_accounting.compose import compose

EXAMPLE = Unit("example")


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "delta", "correct"),
    [
        (0.1401, 1.277, 560, 7.872e-6, 17.434),
        (0.2757, 8.423, 70400, 1.302e-7, 81.976),
        (0.05408, 3.193, 77140, 1.647e-8, 37.613),
        (0.1557, 2.819, 86050, 1.815e-7, 221.536),
        (0.01, 0.4, 10000, 1e-5, 100.2855),
    ],
)
def test_repaired_prv_is_correct(q: float, sigma: float, steps: int, delta: float, correct: float) -> None:
    """E4: the mean of the truncated loss, once wrong by steps·e. Wide bounds keep the grid small."""
    composition = compose([PoissonGaussian(q, sigma, steps)], EXAMPLE)[0]
    bound = prv.epsilon(composition, delta, rough=10 * correct)
    assert bound.lower <= correct <= bound.upper
    assert (bound.lower + bound.upper) / 2 == pytest.approx(correct, rel=2e-4)


def test_prv_composes_different_mechanisms() -> None:
    """E5: several runs; PRV and PLD agree on their composition, full batches included."""
    parts = [PoissonGaussian(0.01, 0.8, 300), PoissonGaussian(0.05, 2.0, 100), Gaussian(4.0, 2)]
    composition = compose(parts, EXAMPLE)[0]
    fast = pld.epsilon(composition, 1e-6).upper
    bound = prv.epsilon(composition, 1e-6, rough=fast)
    assert bound.lower <= fast <= bound.upper


def test_prv_says_where_it_does_not_apply() -> None:
    replace = Unit("example", "replace", 1000)
    with pytest.raises(Unsupported, match="use pld"):
        epsilon(PoissonGaussian(0.1, 1.0, 10), replace, 1e-5, method="prv")
    with pytest.raises(Unsupported, match="analytic"):
        epsilon(Gaussian(1.0, 10), EXAMPLE, 1e-5, method="prv")
    with pytest.raises(Unsupported, match="Use rdp"):
        epsilon(PoissonGaussian(0.01, 0.8, 10), EXAMPLE, 1e-15, method="prv")


def test_prv_refuses_what_would_not_fit_in_memory() -> None:
    composition = compose([PoissonGaussian(0.5, 0.3, 10**6)], EXAMPLE)[0]
    with pytest.raises(Unsupported, match="points"):
        prv.epsilon(composition, 1e-6, rough=1.0)


def test_the_closed_form_is_for_full_batches_only() -> None:
    with pytest.raises(Unsupported, match="pld, prv or rdp"):
        analytic.epsilon(compose([PoissonGaussian(0.1, 1.0, 10)], EXAMPLE)[0], 1e-5)

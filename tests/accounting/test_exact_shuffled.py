"""Shuffled batches and banded noise: what they are accounted as, against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dpft_accounting import BandedMF, Gaussian, PoissonGaussian, ShuffledGaussian, Unit, epsilon
from scipy.stats import norm

EXAMPLE = Unit("example")


def test_shuffled_batches_are_above_their_lower_bound() -> None:
    """Chua et al. 2024: δ >= P₂(max > C) − e^ε P₁(max > C) for one epoch; our bound must not be below it."""
    steps, sigma, d = 66, 0.7, 7.4e-6
    unit = Unit("example", "zero_out", 67_349)
    upper = epsilon(ShuffledGaussian(1, sigma), unit, d).upper

    def lower_delta(eps: float) -> float:
        def above(mean: float, c: np.ndarray) -> np.ndarray:
            return -np.expm1(norm.logcdf((c - mean) / sigma) + (steps - 1) * norm.logcdf(c / sigma))

        c = np.linspace(-1, 8, 20_001)
        return float(np.max(above(2.0, c) - math.exp(eps) * above(1.0, c)))

    assert lower_delta(6.7) > d > lower_delta(upper)
    assert upper == pytest.approx(6.75, abs=0.01)
    assert upper == epsilon(Gaussian(sigma), unit, d).upper
    assert upper > 2 * epsilon(PoissonGaussian(1 / steps, sigma, steps), unit, d).upper


def test_banded_noise_is_the_poisson_mechanism_it_stands_for() -> None:
    same: list[tuple[BandedMF, PoissonGaussian | Gaussian]] = [
        (BandedMF(0.01, 1.1, 95, 10), PoissonGaussian(0.1, 1.1, 10)),
        (BandedMF(0.02, 1.1, 100, 50), Gaussian(1.1, 2)),
        (BandedMF(0.02, 1.1, 100, 1), PoissonGaussian(0.02, 1.1, 100)),
    ]
    for banded, plain in same:
        assert epsilon(banded, EXAMPLE, 1e-6) == epsilon(plain, EXAMPLE, 1e-6)

"""The Gaussian mechanism in closed form, in log space so that tiny δ and large ε keep their digits.

Reference: Balle & Wang 2018, theorem 8; Dong et al. 2019, corollary 2.13:
δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2).
"""

from __future__ import annotations

import math

from .bound import Bound
from .compose import Composition
from .errors import Unsupported
from .versions import versions

# The root finder and the normal tails are good to about 1e-12; a thousand times that is given to rounding.
_SLACK = 1e-9
_LARGE_MU = 1e12  # from here on μ²/2 is ε to within _SLACK, and the arguments of Φ have lost their digits
_NOTHING = -1e300  # ln of a δ too small to see; finite, because the root finder subtracts it


def log_delta(epsilon: float, mu: float) -> float:
    """ln δ(ε) of a Gaussian with ``mu`` > 0; hugely negative where the two terms can't be told apart."""
    from scipy.special import log_ndtr

    first = float(log_ndtr(-epsilon / mu + mu / 2))
    ratio = epsilon + float(log_ndtr(-epsilon / mu - mu / 2)) - first
    return first + math.log(-math.expm1(ratio)) if ratio < 0 else _NOTHING


def epsilon_of(delta: float, mu: float) -> float:
    """Least ε >= 0 with δ(ε) <= ``delta``, for ``mu`` > 0."""
    from scipy.optimize import brentq

    target = math.log(delta)
    if log_delta(0.0, mu) <= target:
        return 0.0
    # δ(ε) <= Φ(−ε/μ + μ/2) <= exp(−z²/2) at ε = μ²/2 + μ·z, so this end is always on the far side.
    far = mu * mu / 2 + mu * math.sqrt(-2 * target)
    if mu > _LARGE_MU:
        return far
    return float(brentq(lambda e: log_delta(e, mu) - target, 0.0, far, xtol=1e-300, rtol=1e-13))


def mu_of(epsilon: float, delta: float) -> float:
    """Largest μ whose Gaussian is (``epsilon``, ``delta``)-private, by root finding; no rounding added."""
    from scipy.optimize import brentq

    target = math.log(delta)

    def excess(log_mu: float) -> float:
        return log_delta(epsilon, math.exp(log_mu)) - target

    low, high = -1.0, 1.0
    while excess(low) > 0:
        low -= 2
    while excess(high) < 0:
        high += 1
    return math.exp(float(brentq(excess, low, high, xtol=1e-15, rtol=1e-13)))


def epsilon(composition: Composition, delta: float) -> Bound:
    """ε of full-batch parts; the bracket holds the rounding. Unsupported if any part is subsampled."""
    _only_gaussian(composition)
    return _around(epsilon_of(delta, composition.mu))


def delta(composition: Composition, epsilon: float) -> Bound:
    """δ of full-batch parts; the bracket holds the rounding. Unsupported if any part is subsampled."""
    _only_gaussian(composition)
    bound = _around(math.exp(log_delta(epsilon, composition.mu)))
    return Bound(bound.lower, min(bound.upper, 1.0), bound.method, bound.versions)


def _only_gaussian(composition: Composition) -> None:
    if composition.parts:
        raise Unsupported("The closed form is for full batches (q = 1) only. For everything else use pld, prv or rdp.")


def _around(value: float) -> Bound:
    lower = value * (1 - _SLACK) if math.isfinite(value) else 0.0
    return Bound(lower, value * (1 + _SLACK), "analytic", versions("scipy"))

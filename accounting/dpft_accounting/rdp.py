"""Rényi accountant: an analytic upper bound, loose by some ten percent, sound for every δ.

The Rényi divergence of one step is dp-accounting's (Mironov et al. 2019); composition adds it up. The
conversion is proposition 12 of Canonne et al. 2020: ε = min_α R(α) + ln(1 − 1/α) − (ln δ + ln α)/(α − 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from .bound import Bound
from .combined import EpsDelta
from .compose import Chosen, Composition, Part
from .errors import Unsupported
from .quiet import absl_silenced, float_warnings_silenced
from .sampled import PoissonGaussian
from .select_rdp import best_curve
from .versions import versions

# Low orders serve large ε, high ones tiny ε and δ; the gaps cost less than a percent.
ORDERS: tuple[float, ...] = (
    *(1 + k / 40 for k in range(1, 8)),
    *(1 + k / 10 for k in range(2, 100)),
    *range(11, 64),
    *(64 * 2 ** (k / 4) // 1 for k in range(21)),
)

# Float64 noise of one step's R(α), as an absolute error: with tiny q and large sigma the library can return
# zero or a negative number where the truth is 1e-15, and a million steps would be reported as free.
_NOISE = 1e-14


def epsilon(composition: Composition, delta: float) -> Bound:
    """Upper bound on ε, both directions. Unsupported for parts without a Rényi bound, see ``_of_part``."""
    return _bound(converted(curve(composition), delta))


def delta(composition: Composition, epsilon: float) -> Bound:
    """Upper bound on δ(ε), both directions. Unsupported for parts without a Rényi bound, see ``_of_part``."""
    return _bound(profile(curve(composition), epsilon))


def converted(divergences: Sequence[float], delta: float) -> float:
    """ε at ``delta`` from the divergences at ORDERS."""
    log_delta = math.log(delta)
    upper = min(
        r + math.log1p(-1 / order) - (log_delta + math.log(order)) / (order - 1)
        for order, r in zip(ORDERS, divergences, strict=True)
    )
    return max(0.0, upper)


def profile(divergences: Sequence[float], epsilon: float) -> float:
    """δ(ε) from the divergences at ORDERS."""
    log_upper = min(
        (order - 1) * (r + math.log1p(-1 / order) - epsilon) - math.log(order)
        for order, r in zip(ORDERS, divergences, strict=True)
    )
    return math.exp(min(0.0, log_upper))


def curve(composition: Composition) -> list[float]:
    """Total Rényi divergence at each of ORDERS, the larger of both directions."""
    total = [order * composition.mu * composition.mu / 2 for order in ORDERS]
    for part in composition.parts:
        one_step = _of_part(part)
        total = [sum_ + part.steps * r for sum_, r in zip(total, one_step, strict=True)]
    return total


def _of_part(part: Part) -> Sequence[float]:
    step = part.step
    if isinstance(step, EpsDelta) and step.delta == 0:
        # Bun & Steinke 2016, proposition 3.3, and the largest possible loss.
        return [min(step.epsilon, order * step.epsilon**2 / 2) for order in ORDERS]
    if isinstance(step, Chosen):
        curves = [curve(base) for base in step.bases]
        return best_curve(step.select, ORDERS, [max(rs) for rs in zip(*curves, strict=True)])
    if isinstance(step, PoissonGaussian) and part.relation != "replace":
        return _one_step(step.q, step.sigma)
    raise Unsupported(
        "rdp knows full batches, pure epsilon, and Poisson batches under add_remove and zero_out only. Here use pld."
    )


@lru_cache(maxsize=256)
def _one_step(q: float, sigma: float) -> tuple[float, ...]:
    """R(α) of one Poisson Gaussian step, rounded towards infinity; infinite where it cannot be computed."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders=ORDERS, neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    try:
        with absl_silenced(), float_warnings_silenced():
            accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)))
    except (ArithmeticError, ValueError):  # sigma so small that its square is zero
        return (math.inf,) * len(ORDERS)
    # The public get_epsilon treats a negative divergence as ε = 0; the raw values let us round it up instead.
    raw = (float(r) for r in accountant._rdp)
    return tuple(math.inf if math.isnan(r) else max(r, 0.0) + _NOISE for r in raw)


def _bound(upper: float) -> Bound:
    return Bound(0.0, upper, "rdp", used())


def used() -> dict[str, str]:
    """The versions that the numbers of this accountant depend on."""
    return versions("dp-accounting")

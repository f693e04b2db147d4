"""Privacy loss distributions: the default accountant, fast, both directions, every adjacency.

The library is dp-accounting (Doroshenko et al. 2022, connect the dots); ours is the choice of grid. Its error
is always upward except for float64 noise, which matters below δ = 1e-9: there this accountant is only a
check.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from . import rdp
from .bound import Bound
from .compose import Composition
from .errors import Unsupported
from .quiet import float_warnings_silenced
from .versions import versions

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

SOUND_DELTA = 1e-9
_FINEST, _FINEST_SMALL_DELTA, _COARSEST = 2e-5, 1e-4, 1e-2
_MAX_POINTS_ONE_STEP, _MAX_POINTS = 1e6, 2e7  # about three seconds and a gigabyte
_CLOSE = 1.5  # a first guess of ε this much too high still leaves the grid error below rtol


def epsilon(composition: Composition, delta: float, rtol: float = 1e-3) -> Bound:
    """Upper bound on ε, too high by about ``rtol`` at most, in the worse direction.

    Errors: Unsupported if the loss is so large (about ε > 1e5) that the grid would not fit in memory, or if
    the library finds no finite ε.
    """
    # The Rényi bound is some ten percent too high, close enough for the grid; where it is not, look again.
    rough = rdp.rough_epsilon(composition, delta)
    while True:
        dx = _fitting(composition, grid(composition, rough, delta, rtol))
        with float_warnings_silenced():
            upper = float(_distribution(composition, dx).get_epsilon_for_delta(delta))
        if math.isinf(upper):  # delta below the mass that the library cuts off, or epsilon near 700
            raise Unsupported(f"pld has no finite answer at delta={delta:g} here. Use rdp, or more noise.")
        if rough <= _CLOSE * upper or dx <= _finest(delta):
            return _bound(upper, dx)
        rough = upper


def delta(composition: Composition, epsilon: float, rtol: float = 1e-3) -> Bound:
    """Upper bound on δ(ε), on the grid that would give this ε within ``rtol``. Errors as for ``epsilon``."""
    guess = min(max(rdp.rough_delta(composition, epsilon), 1e-300), 0.5)
    # Near ε = 0 the profile changes on the scale of the loss's standard deviation, not of ε.
    scale = max(epsilon, 0.1 * math.sqrt(_variance(composition)))
    dx = _fitting(composition, grid(composition, scale, guess, rtol))
    # Sums of rounded probabilities can end a hair outside [0, 1].
    with float_warnings_silenced():
        upper = float(_distribution(composition, dx).get_delta_for_epsilon(epsilon))
    return _bound(min(max(upper, 0.0), 1.0), dx)


def grid(composition: Composition, epsilon: float, delta: float, rtol: float) -> float:
    """Grid width at which discretisation raises ε by at most about ``rtol``·ε.

    Connecting the dots adds variance dx²/6 a step, hence Δε ≈ dx²/12·(T + z·T/sqrt(V)) with T the number of
    steps, V the variance of the total loss and z = sqrt(2 ln(1/δ)). Half of the tolerance is given to this
    estimate.
    """
    steps = sum(part.steps for part in composition.poisson) + (composition.mu > 0)
    z = math.sqrt(-2 * math.log(delta))
    spread = steps * (1 + z / math.sqrt(max(_variance(composition), 1e-300)))
    return min(max(math.sqrt(6 * rtol * epsilon / spread), _finest(delta)), _COARSEST)


def _finest(delta: float) -> float:
    """Finest useful grid: below it float64 noise costs more than the grid."""
    return _FINEST if delta >= SOUND_DELTA else _FINEST_SMALL_DELTA


def _variance(composition: Composition) -> float:
    """About the variance of the total privacy loss."""
    total = composition.mu * composition.mu
    for part in composition.poisson:
        precision = (1 / part.sigma) * (1 / part.sigma)
        total += part.steps * min(part.q**2 * math.expm1(min(precision, 700.0)), precision)
    return total


def _fitting(composition: Composition, dx: float) -> float:
    """``dx``, or the coarsest grid if ``dx`` needs too many points; Unsupported if even that does."""
    widest_step = max((_reach(1 / part.sigma) for part in composition.poisson), default=0.0)
    widest_step = max(widest_step, _reach(composition.mu))
    total = 2 * rdp.rough_epsilon(composition, 1e-15)
    for width in (dx, max(dx, _COARSEST)):
        if 2 * widest_step / width <= _MAX_POINTS_ONE_STEP and total / width <= _MAX_POINTS:
            return width
    raise Unsupported(
        f"A privacy loss of about {max(total, widest_step):.3g} is too large for the grid of pld and prv. "
        "Use rdp, or more noise."
    )


def _reach(mu: float) -> float:
    """Largest loss of one step that the library keeps: ten standard deviations out."""
    return mu * mu / 2 + 10 * mu


def _distribution(composition: Composition, dx: float) -> PrivacyLossDistribution:
    """Loss distribution of the whole composition on one common grid."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as library

    replace = composition.adjacency == "replace"
    relation = NeighboringRelation.REPLACE_ONE if replace else NeighboringRelation.ADD_OR_REMOVE_ONE
    parts = []
    with float_warnings_silenced():
        for part in composition.poisson:
            one_step = library.from_gaussian_mechanism(
                standard_deviation=part.sigma,
                sampling_prob=part.q,
                value_discretization_interval=dx,
                neighboring_relation=relation,
            )
            parts.append(one_step.self_compose(part.steps))
        if composition.mu > 0:  # μ includes the sensitivity, so add/remove is right under every adjacency
            parts.append(
                library.from_gaussian_mechanism(
                    standard_deviation=1 / composition.mu,
                    value_discretization_interval=dx,
                    neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
                )
            )
        total = parts[0]
        for other in parts[1:]:
            total = total.compose(other)
    return total


def _bound(upper: float, dx: float) -> Bound:
    return Bound(0.0, upper, "pld", versions("dp-accounting", "numpy", "scipy"), dx)

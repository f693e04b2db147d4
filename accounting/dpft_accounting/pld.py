"""Privacy loss distributions: the default accountant, fast, both directions, every adjacency, every mechanism.

One step: ``mixtures.py``; composition: ``losses.py``; here is the choice of grid. The method is that of Koskela et
al. 2020 and Doroshenko et al. 2022, as in dp-accounting, which the tests compare it with. The grid's error is
always upward. Float64 noise matters below δ = 1e-9: there this accountant is only a check.
"""

from __future__ import annotations

import math

from .bound import Bound
from .compose import Composition
from .errors import Unsupported
from .losses import Pair, TooLarge
from .steps import composition_variance, discretised_steps, gaussian_reach, one_of_each, reach
from .versions import __version__, versions

SOUND_DELTA = 1e-9
_FINEST, _FINEST_SMALL_DELTA, _COARSEST = 1e-5, 1e-4, 1e-2
_MAX_POINTS_ONE_STEP = 2e6
_CLOSE = 1.5  # a first guess of ε this much too high still leaves the grid error below rtol


def epsilon(composition: Composition, delta: float, rtol: float = 1e-3) -> Bound:
    """Upper bound on ε, too high by about ``rtol`` at most, in the worse direction.

    Errors: Unsupported if the loss is so large (about ε > 1e5) that the grid would not fit in memory, or if no ε is
    finite at this δ.
    """
    rough = math.inf  # the first look is as coarse as can be, and sets the grid of the next
    while True:
        pair, dx = fitting(composition, grid(composition, rough, delta, rtol))
        upper = pair.epsilon(delta)
        if math.isinf(upper):  # delta below the mass that is cut off
            raise Unsupported(f"pld has no finite answer at delta={delta:g} here. Use rdp, or a larger delta.")
        if rough <= _CLOSE * upper or dx <= _finest(delta):
            return Bound(0.0, upper, "pld", used(), dx)
        rough = upper


def delta(composition: Composition, epsilon: float, rtol: float = 1e-3) -> Bound:
    """Upper bound on δ(ε), on the grid that would give this ε within ``rtol``. Errors as for ``epsilon``."""
    # Near ε = 0 the profile changes on the scale of the loss's standard deviation, not of ε.
    scale = max(epsilon, 0.1 * math.sqrt(composition_variance(composition)))
    rough = float(fitting(composition, grid(composition, scale, 1e-5, 10 * rtol))[0].delta(epsilon))
    pair, dx = fitting(composition, grid(composition, scale, min(max(rough, 1e-15), 0.5), rtol))
    return Bound(0.0, float(pair.delta(epsilon)), "pld", used(), dx)


def grid(composition: Composition, epsilon: float, delta: float, rtol: float) -> float:
    """Grid width at which discretisation raises ε by at most about ``rtol``·ε.

    Connecting the dots adds variance dx²/6 a step, hence Δε ≈ dx²/12·(T + z·T/sqrt(V)) with T the number of
    steps, V the variance of the total loss and z = sqrt(2 ln(1/δ)). Half of the tolerance is given to this
    estimate.
    """
    steps = discretised_steps(composition)
    z = math.sqrt(-2 * math.log(delta))
    spread = steps * (1 + z / math.sqrt(max(composition_variance(composition), 1e-300)))
    return min(max(math.sqrt(6 * rtol * epsilon / spread), _finest(delta)), _COARSEST)


def fitting(composition: Composition, dx: float) -> tuple[Pair, float]:
    """The total loss on grid ``dx``, or on the next coarser one that fits in memory; TooLarge if none does."""
    widest = max((reach(part) for part in composition.parts), default=0.0)
    widest = max(widest, gaussian_reach(composition.mu))
    if 2 * widest / _COARSEST > _MAX_POINTS_ONE_STEP:
        raise TooLarge(
            f"A privacy loss of about {widest:.3g} is too large for the grid of pld and prv. Use rdp, or more noise."
        )
    dx = max(dx, 2 * widest / _MAX_POINTS_ONE_STEP)
    while True:
        try:
            return one_of_each(composition, dx), dx
        except TooLarge:
            if dx >= _COARSEST:
                raise
            dx = min(4 * dx, _COARSEST)


def _finest(delta: float) -> float:
    """Finest useful grid: below it float64 noise costs more than the grid."""
    return _FINEST if delta >= SOUND_DELTA else _FINEST_SMALL_DELTA


def used() -> dict[str, str]:
    """The versions that the numbers of this accountant depend on."""
    return {"dpft-accounting": __version__, **versions("numpy", "scipy")}

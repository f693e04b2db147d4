"""Privacy random variables: the second opinion, with a lower and an upper bound, in long double.

Gopi et al. 2021. The library is prv-accountant, with one repair: its mean of the truncated loss. The cells
are shifted by the error of the discrete mean once a step, so an error e in the mean moves ε by steps·e. The
library integrates [0.1, b] in a single adaptive panel, although the distribution function rises to 1 in a
tiny part of it, and can stop early: ε off by 3 at 70,000 steps, silently. Here the mean is the sum of
integrals over geometric panels.

The library treats the "remove" direction only, which is the worse one in every setting tried; PLD covers
both.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .bound import Bound
from .compose import Composition
from .errors import Unsupported
from .quiet import float_warnings_silenced
from .versions import versions

if TYPE_CHECKING:
    from prv_accountant.discrete_privacy_random_variable import DiscretePrivacyRandomVariable

_MAX_POINTS = 1e7  # about 50 seconds and several gigabytes
_PANELS = 60
_FINEST_PANEL = 1e-6


def epsilon(composition: Composition, delta: float, rough: float) -> Bound:
    """Lower and upper bound on ε, given a ``rough`` value of it that sets the error.

    The error is 0.01, but within 0.1 % to 2 % of ``rough``; where this would need too much memory, 0.5 % of
    it.
    Errors: Unsupported for replace, full batches, too little memory, and δ beyond the reach of long double.
    """
    check(composition)
    composed, error, mesh = _composed(composition, delta / 1000, _errors(rough))
    try:
        with float_warnings_silenced():
            lower, _, upper = composed.compute_epsilon(delta, delta / 1000, error)
    except (ValueError, RuntimeError) as problem:
        raise Unsupported(f"prv cannot reach delta={delta:g} here ({problem}). Use rdp.") from problem
    if not (math.isfinite(lower) and math.isfinite(upper)):
        raise Unsupported(f"prv has no finite answer at delta={delta:g}. Use rdp.")
    return Bound(max(0.0, lower), max(0.0, upper), "prv", versions("prv-accountant", "numpy", "scipy"), mesh)


def delta(composition: Composition, epsilon: float, rough: float) -> Bound:
    """Lower and upper bound on δ(ε), given a ``rough`` δ that sets the error. Errors as for ``epsilon``."""
    check(composition)
    composed, error, mesh = _composed(composition, rough / 1000, _errors(epsilon))
    with float_warnings_silenced():
        lower = float(composed.compute_delta_estimate(epsilon + error)) - rough / 1000
        upper = float(composed.compute_delta_estimate(epsilon - error)) + rough / 1000
    if not math.isfinite(upper):
        raise Unsupported(f"prv has no finite answer at epsilon={epsilon:g}. Use rdp.")
    used = versions("prv-accountant", "numpy", "scipy")
    return Bound(max(0.0, lower), min(max(0.0, upper), 1.0), "prv", used, mesh)


def check(composition: Composition) -> None:
    """Unsupported for anything but Poisson and full batches under add_remove or zero_out."""
    if composition.poisson is None:
        raise Unsupported("prv knows Poisson batches under add_remove and zero_out only. Here use pld.")
    if not composition.poisson:
        raise Unsupported("prv is not run on full batches (q = 1), where analytic is exact.")


def _errors(epsilon: float) -> tuple[float, float]:
    """The error in ε to ask for, and a looser one for when memory is short."""
    epsilon = max(epsilon, 1e-3)
    tight = min(max(0.01, 0.001 * epsilon), 0.02 * epsilon)
    return tight, max(tight, 0.005 * epsilon)


def _composed(
    composition: Composition, delta_error: float, eps_errors: tuple[float, ...]
) -> tuple[DiscretePrivacyRandomVariable, float, float]:
    """Distribution of the total loss, the first of ``eps_errors`` that fits in memory, the mesh width."""
    from prv_accountant.accountant import compute_safe_domain_size
    from prv_accountant.composers import Heterogeneous
    from prv_accountant.discretisers import CellCentred
    from prv_accountant.domain import Domain

    losses, steps = _losses(composition)
    try:
        with float_warnings_silenced():
            for eps_error in eps_errors:
                reach = float(compute_safe_domain_size(losses, steps, eps_error, delta_error))
                # Theorem 5.5 of the paper.
                mesh = eps_error / math.sqrt(sum(steps) / 2 * math.log(12 / delta_error))
                if 2 * reach / mesh <= _MAX_POINTS:
                    break
            else:
                raise Unsupported(f"prv would need {2 * reach / mesh:.3g} points, more than memory allows. Use rdp.")
            domain = Domain.create_aligned(-reach, reach, mesh)
            truncated = [_TruncatedLoss(loss, domain.t_min(), domain.t_max()) for loss in losses]
            discrete = [CellCentred().discretise(loss, domain) for loss in truncated]
            return Heterogeneous(discrete).compute_composition(steps), eps_error, mesh
    except (ArithmeticError, ValueError, RuntimeError, AssertionError) as problem:
        raise Unsupported(f"prv cannot represent this mechanism ({problem or type(problem).__name__}).") from problem


def _losses(composition: Composition) -> tuple[list[Any], list[int]]:
    """The library's random variable of each part, and how often each is composed with itself."""
    from prv_accountant.privacy_random_variables import GaussianMechanism, PoissonSubsampledGaussianMechanism

    poisson = composition.poisson or ()
    losses = [
        PoissonSubsampledGaussianMechanism(sampling_probability=step.q, noise_multiplier=step.sigma)
        for step, _ in poisson
    ]
    steps = [steps for _, steps in poisson]
    if composition.mu > 0:
        losses.append(GaussianMechanism(noise_multiplier=1 / composition.mu))
        steps.append(1)
    return losses, steps


class _TruncatedLoss:
    """A privacy loss restricted to [low, high]: the library's, with the mean repaired."""

    def __init__(self, loss: Any, low: float, high: float) -> None:
        from prv_accountant.privacy_random_variables import PrivacyRandomVariableTruncated

        self._truncated = PrivacyRandomVariableTruncated(loss, low, high)
        self._low, self._high = low, high
        # Below this edge the distribution function of a subsampled loss is zero: a kink that a panel must not
        # hide.
        self._edge = float(math.log1p(-float(loss.p))) if hasattr(loss, "p") else low
        self.pm_inf: float = loss.pm_inf

    def probability(self, left: Any, right: Any) -> Any:
        """Mass of the cells [left, right]."""
        return self._truncated.probability(left, right)

    def mean(self) -> float:
        """E[Y] = ∫_0^high (1 − F) − ∫_low^0 F, each panel to 1e-15 or 1e-11 relative, summed exactly."""
        import numpy as np

        up = [0.0, *np.geomspace(_FINEST_PANEL, self._high, _PANELS)]
        down = sorted({0.0, *-np.geomspace(_FINEST_PANEL, -self._low, _PANELS), max(self._low, self._edge)})
        above = [self._integral(lambda t: 1 - self._cdf(t), a, b) for a, b in pairwise(up)]
        below = [-self._integral(self._cdf, a, b) for a, b in pairwise(down)]
        return math.fsum(above + below)

    def _cdf(self, t: float) -> float:
        return float(self._truncated.cdf(t))

    @staticmethod
    def _integral(function: Any, start: float, end: float) -> float:
        from scipy import integrate

        with warnings.catch_warnings():
            # The tolerance asks for all that float64 can give, and quad says so when it gets there.
            warnings.simplefilter("ignore", integrate.IntegrationWarning)
            return float(integrate.quad(function, start, end, epsabs=1e-15, epsrel=1e-11, limit=200)[0])

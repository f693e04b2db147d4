"""Lower bounds on ε from attacks on what was really run: they find bugs, and never prove privacy.

A bound above the claim says, at its level of confidence, that the mechanism run is not the one accounted for. A
bound below the claim says nothing: a better attack may exist.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from . import analytic
from ._check import real
from .accountants import PRV_DELTA, epsilon
from .errors import AccountingError, Unsupported
from .mechanisms import Gaussian, Mechanism, PoissonGaussian
from .units import Unit, check_delta

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Sensitivity 1: a canary is there or it isn't. ε under replace is no smaller, so the bounds hold there too.
CANARY = Unit("canary")
_MOST_NOISE = 1e8  # σ from which on the accountants stop looking, and the lower bound is 0


@dataclass(frozen=True)
class Audit:
    """``epsilon_lower`` is at most the true ε at ``delta``, except with probability ``significance``.

    That is all it says. **Audits find bugs; they never prove privacy**: a low bound may only mean a weak attack.
    ``method`` is "gradient_canary" or "one_run"; ``canaries`` counts the scores. Behind the bound, None where
    not applicable: ``fpr_upper`` and ``fnr_upper`` limit the attack's error rates; ``mu_lower`` is the μ of a
    Gaussian, ``sigma_upper`` the noise multiplier of a Poisson Gaussian, that they leave possible;
    ``plain_lower`` is the ε of the scored release without assuming a mechanism; ``correct`` of ``guesses``
    guesses were right.
    """

    epsilon_lower: float
    delta: float
    method: str
    significance: float
    canaries: int
    fpr_upper: float | None = None
    fnr_upper: float | None = None
    plain_lower: float | None = None
    mu_lower: float | None = None
    sigma_upper: float | None = None
    guesses: int | None = None
    correct: int | None = None

    def contradicts(self, claimed_epsilon: float) -> bool:
        """Whether ``claimed_epsilon`` (>= 0) at the same δ is too low to be true; False supports no claim."""
        return self.epsilon_lower > real("claimed epsilon", claimed_epsilon, minimum=0, infinite=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; infinity becomes the text "inf", which JSON can hold."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: "inf" if value == math.inf else value for name, value in values.items()}


def gradient_canary(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    mech: Mechanism,
    delta: float,
    threshold: float,
    significance: float = 0.05,
) -> Audit:
    """Audit of independent releases with and without a gradient of norm C along a fixed unit direction c.

    A score is ⟨noisy sum, c⟩/(sigma·C), where the other examples' sum along c is zero (or known, and taken
    off). ``Gaussian``, and ``PoissonGaussian`` with q = 1: sum over the steps, divided by sqrt(steps).
    ``PoissonGaussian`` with q < 1: **one step** a score, "in" meaning that the canary is in the data, sampled or
    not; its ε is that of all steps.
    "In" is guessed above ``threshold``, which must be fixed before the scores are seen; a score equal to it
    counts as an error on either side.
    Guarantee: ``epsilon_lower`` and ``plain_lower`` exceed the truth with probability at most ``significance``.
    Edge case: ``sigma_upper`` 0 and ε infinite if no noise at all leaves so few errors at this q.
    Reference: Nasr et al. 2023 (arXiv 2302.07956); Clopper–Pearson limits, significance/2 each.
    Errors: Unsupported for other mechanisms; AccountingError for values that mean nothing.
    """
    if not isinstance(mech, Gaussian | PoissonGaussian):
        kind = getattr(mech, "kind", mech)
        raise Unsupported(f"A gradient canary audits gaussian and poisson_gaussian, found {kind!r:.60}. Use one_run.")
    inside, outside = checked_scores("scores_in", scores_in), checked_scores("scores_out", scores_out)
    delta, level, cut = check_delta(delta, CANARY), checked_level(significance), real("threshold", threshold)
    fpr = _upper_limit(int((outside >= cut).sum()), outside.size, level / 2)
    fnr = _upper_limit(int((inside <= cut).sum()), inside.size, level / 2)
    mu = sigma = None
    if isinstance(mech, Gaussian) or mech.q == 1:
        mu = max(0.0, _shift(fpr, fnr))
        lower = analytic.epsilon_of(delta, mu) if mu > 0 else 0.0
    else:
        sigma = _most_noise(fpr, fnr, mech.q)
        lower = _poisson_lower(mech.q, sigma, mech.steps, delta)
    # Both limits hold at once, so either direction of the definition may be used, and the better one chosen.
    ratio = max((1 - fnr - delta) / fpr, (1 - fpr - delta) / fnr)
    return Audit(
        epsilon_lower=lower,
        delta=delta,
        method="gradient_canary",
        significance=level,
        canaries=inside.size + outside.size,
        fpr_upper=fpr,
        fnr_upper=fnr,
        plain_lower=math.log(max(ratio, 1.0)),
        mu_lower=mu,
        sigma_upper=sigma,
    )


def _shift(fpr: float, fnr: float) -> float:
    """μ of the two unit Gaussians that a threshold tells apart with exactly these error rates, both > 0."""
    from scipy.special import ndtri

    return float(-ndtri(fpr) - ndtri(fnr))


def _most_noise(fpr: float, fnr: float, q: float) -> float:
    """Largest σ with f(fpr) <= fnr, f(α) = (1−q)(1−α) + q·Φ(Φ⁻¹(1−α) − 1/σ): one step's trade-off, solved for σ."""
    missed_though_sampled = (fnr - (1 - q) * (1 - fpr)) / q
    if missed_though_sampled <= 0:
        return 0.0
    shift = _shift(fpr, min(missed_though_sampled, 1.0))
    return 1 / shift if shift > 0 else math.inf


def _poisson_lower(q: float, sigma: float, steps: int, delta: float) -> float:
    """A number that is at most the ε of this Poisson Gaussian; at δ below 1e-12, that of 1e-12, which is smaller."""
    if sigma == 0 and steps > 0:
        return math.inf
    reason: Unsupported | None = None
    while 0 < sigma < _MOST_NOISE:
        try:
            # PLD and RDP bound ε from above; only PRV has a lower bound that is worth something.
            mech = PoissonGaussian(q, sigma, steps)
            return epsilon(mech, CANARY, max(delta, PRV_DELTA), method="prv").lower
        except Unsupported as error:  # too large a loss for its grid; more noise has a smaller ε
            reason, sigma = error, 2 * sigma
    if reason is not None:
        raise reason
    return 0.0


def _upper_limit(errors: int, trials: int, level: float) -> float:
    """Clopper–Pearson: the rate above which so few errors have probability below ``level``."""
    from scipy.special import betaincinv

    return 1.0 if errors == trials else float(betaincinv(errors + 1, trials - errors, 1 - level))


def checked_level(significance: float) -> float:
    """``significance`` as a float; refuses what is not strictly between 0 and 0.5."""
    level = real("significance", significance)
    if not 0 < level < 0.5:
        raise AccountingError(f"Expected significance strictly between 0 and 0.5, found {significance!r}.")
    return level


def checked_scores(name: str, values: ArrayLike) -> NDArray[Any]:
    """``values`` as a flat float64 array; refuses none at all, nan and infinity."""
    import numpy as np

    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # a ragged list
        array = np.empty((0, 0))
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iuf":
        raise AccountingError(f"Expected {name} to be a flat, non-empty list of numbers, found {values!r:.60}.")
    if not np.isfinite(array).all():
        raise AccountingError(f"Expected {name} to be finite, found nan or infinity among them.")
    return array.astype(np.float64)

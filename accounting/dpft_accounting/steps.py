"""One step of each kind as a privacy loss on a grid, both directions, and how widely its loss spreads."""

from __future__ import annotations

import math
from typing import Any

from . import mixtures
from .combined import EpsDelta
from .compose import Chosen, Composition, Part
from .losses import Pair, from_profile
from .quiet import float_warnings_silenced
from .sampled import Gaussian, PoissonGaussian, TruncatedPoissonGaussian, UserELS
from .select import best_profile


def one_step(part: Part, dx: float) -> Pair:
    """The loss of one step of ``part``, unit removed and unit added."""
    step = part.step
    if isinstance(step, Chosen):
        bases = [one_of_each(base, dx) for base in step.bases]
        profile, reach = best_profile(step.select, bases, dx)
        return from_profile(profile, dx, reach)
    if isinstance(step, EpsDelta):
        return _stated(step, dx)
    if isinstance(step, UserELS):
        pair = mixtures.binomial(step.q, step.sigma, step.max_per_user, dx)
    elif isinstance(step, TruncatedPoissonGaussian):
        pair = _truncated(step, dx)
    else:
        assert isinstance(step, PoissonGaussian)  # full batches are no parts
        pair = (mixtures.replaced if part.relation == "replace" else mixtures.poisson)(step.q, step.sigma, dx)
    return pair.reversed() if part.relation == "backward" else pair


def one_of_each(composition: Composition, dx: float) -> Pair:
    """The loss of the whole composition on one common grid. TooLarge if it does not fit."""
    with float_warnings_silenced():
        pairs = [one_step(part, dx).each(lambda loss, n=part.steps: loss.power(n)) for part in composition.parts]  # type: ignore[misc]
        if composition.mu > 0:  # μ includes the sensitivity, so add/remove is right under every adjacency
            pairs.append(mixtures.gaussian(composition.mu, dx))
        total = pairs[0]
        for other in pairs[1:]:
            total = total.compose(other)
    return total


def variance(part: Part) -> float:
    """About the variance of the privacy loss of one step; for grids and first guesses, no guarantee."""
    step = part.step
    if isinstance(step, Chosen):
        return max(composition_variance(base) for base in step.bases)
    if isinstance(step, EpsDelta):
        return step.epsilon**2
    assert not isinstance(step, Gaussian)  # full batches are no parts
    precision = (1 / step.sigma) * (1 / step.sigma)
    if isinstance(step, UserELS):
        mean = step.q * step.max_per_user
        return mean * (mean + 1 - step.q) * precision
    bounded = min(precision, 700.0)
    if part.relation == "replace":  # two opposite shifts, each seen against their mean
        return min(4 * step.q**2 * math.sinh(bounded), 4 * precision)
    return min(step.q**2 * math.expm1(bounded), precision)


def discretised_steps(composition: Composition) -> int:
    """How many one-step losses, each with its own grid error, add up in the composition."""
    total = int(composition.mu > 0)
    for part in composition.parts:
        chosen = isinstance(part.step, Chosen)
        each = max(discretised_steps(base) for base in part.step.bases) if chosen else 1  # type: ignore[union-attr]
        total += part.steps * each
    return total


def composition_variance(composition: Composition) -> float:
    """About the variance of the total privacy loss."""
    return composition.mu**2 + sum(part.steps * variance(part) for part in composition.parts)


def reach(part: Part) -> float:
    """About the largest finite loss of one step that is kept: ten standard deviations out."""
    step = part.step
    if isinstance(step, Chosen):
        return 0.0  # as far as its base, whose own parts are looked at on their own
    if isinstance(step, EpsDelta):
        return step.epsilon
    if isinstance(step, UserELS):
        return gaussian_reach(mixtures.most_counted(step.q, step.max_per_user) / step.sigma)
    doubled = part.relation == "replace" or isinstance(step, TruncatedPoissonGaussian)
    return gaussian_reach((2 if doubled else 1) / step.sigma)


def gaussian_reach(mu: float) -> float:
    return mu * mu / 2 + 10 * mu


def _truncated(step: TruncatedPoissonGaussian, dx: float) -> Pair:
    """With the chance τ that the unit finds the batch full, its presence moves another unit out: twice the clip norm.

    τ = Pr[Bin(n − 1, q) >= cap]; given that, the unit is in with probability q' = Pr[Bin(n, q) > cap]·cap/(τ·n).
    """
    from scipy.stats import binom

    full = float(binom.sf(step.cap - 1, step.n - 1, step.q))
    plain = mixtures.poisson(step.q, step.sigma, dx)
    if full == 0:
        return plain
    rate = min(1.0, float(binom.sf(step.cap, step.n, step.q)) * step.cap / (full * step.n))
    moved = mixtures.replaced(rate, step.sigma / 2, dx)
    return Pair(moved.remove.mixed(plain.remove, full), moved.add.mixed(plain.add, full))


def _stated(step: EpsDelta, dx: float) -> Pair:
    """(ε₀, δ₀): mass δ₀ at infinity, else ±ε₀, whose profile is δ₀ + (1 − δ₀)(e^ε₀ − e^ε)₊/(1 + e^ε₀)."""
    import numpy as np

    def profile(epsilon: Any) -> Any:
        # In terms of e^(ε − ε₀) <= 1, so that no ε₀ overflows.
        rest = -np.expm1(np.minimum(epsilon - step.epsilon, 0.0)) / (1 + math.exp(-step.epsilon))
        return step.delta + (1 - step.delta) * rest

    return from_profile(profile, dx, step.epsilon + dx)

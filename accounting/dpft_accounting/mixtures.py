"""The privacy loss of two Gaussian mixtures of equal width on a grid: connect the dots, vectorised.

P and Q are mixtures of N(m, σ²) whose loss ln(P/Q) is monotone in x. Between the x of two neighbouring grid losses
ℓ and ℓ + dx let P have mass a and Q mass b. The pair that puts a onto both ends with the same a and b,

    at ℓ + dx:  (a − e^ℓ·b)/(1 − e^(−dx)),      at ℓ:  the rest of a,

has the same hockey-stick divergence at every grid loss and a larger one in between (Doroshenko et al. 2022), so it
dominates P and Q, and so do its compositions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .losses import Loss, Pair, TooLarge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Mixture = Sequence[tuple[float, float]]  # (weight, mean)

DEVIATIONS = 9.6  # how far out the grid goes; beyond lies mass 4e-22, which counts as infinite loss
_LARGEST_EXPONENT = 600.0
_NODES = 50_000
_MOST_COMPONENTS = 5_000  # of a mixture: some ten seconds


def poisson(q: float, sigma: float, dx: float) -> Pair:
    """One unit in a Poisson sample of rate ``q`` or not: P = (1 − q)·N(0) + q·N(1) against Q = N(0)."""
    with_unit, without = [(1 - q, 0.0), (q, 1.0)], [(1.0, 0.0)]
    top = _log_ratio(q, sigma, 1 + DEVIATIONS * sigma)
    bottom = _log_ratio(q, sigma, -DEVIATIONS * sigma)

    def x_at(loss: Array) -> Array:
        return _inverse(q, sigma, loss)

    removed = _connected(with_unit, without, sigma, dx, (bottom, top), x_at)
    if q == 1:
        return Pair(removed, removed)
    added = _connected(without, with_unit, sigma, dx, (-top, -bottom), lambda loss: _inverse(q, sigma, -loss))
    return Pair(removed, added)


def gaussian(mu: float, dx: float) -> Pair:
    """The full-batch Gaussian of this μ."""
    return poisson(1.0, 1 / mu, dx)


def replaced(q: float, sigma: float, dx: float) -> Pair:
    """A unit in a Poisson sample replaced by its opposite: (1 − q)·N(0) + q·N(1) against (1 − q)·N(0) + q·N(−1)."""
    import numpy as np

    old, new = [(1 - q, 0.0), (q, 1.0)], [(1 - q, 0.0), (q, -1.0)]
    end = 1 + DEVIATIONS * sigma
    top = _log_ratio(q, sigma, end) - _log_ratio(q, sigma, -end)

    def x_at(loss: Array) -> Array:
        # With u = e^(x/σ²), c = e^(-1/(2σ²)): q·c·u² + (1 − q)(1 − e^ℓ)·u − e^ℓ·q·c = 0, solved for ℓ >= 0.
        size = np.abs(loss)
        r = np.exp(-size)
        log_c = -1 / (2 * sigma * sigma)
        head = (1 - q) * (1 - r)
        root = np.sqrt(head * head + 4 * q * q * math.exp(2 * log_c) * r)
        log_u = size + np.log(np.maximum(head + root, 1e-300)) - math.log(2 * q) - log_c
        return np.sign(loss) * sigma * sigma * log_u

    loss = _connected(old, new, sigma, dx, (-top, top), x_at)
    return Pair(loss, loss)


def binomial(q: float, sigma: float, trials: int, dx: float) -> Pair:
    """A user whose ``trials`` examples are sampled each with rate ``q``: Σ_k Binom(k)·N(k) against N(0)."""
    import numpy as np
    from scipy.stats import binom

    last = most_counted(q, trials)
    first = trials - most_counted(1 - q, trials) if q < 1 else trials
    if last - first > _MOST_COMPONENTS:
        raise TooLarge(f"A user's number of sampled examples spreads over {last - first} values, too many for pld.")
    counts = np.arange(first, last + 1)
    all_weights = binom.pmf(counts, trials, q)  # logpmf loses digits with the size of ``trials``
    kept = all_weights > math.exp(-(DEVIATIONS**2) / 2 - 10)  # the rest has mass below 1e-20: infinite loss
    weights, means = all_weights[kept], counts[kept].astype(float)
    mixture = list(zip(map(float, weights), map(float, means), strict=True))

    def log_ratio(x: Array) -> tuple[Array, Array]:
        """Loss at x and its derivative, the components added one by one to spare memory."""
        total, moment = np.full_like(x, -np.inf), np.zeros_like(x)
        for weight, mean in mixture:
            term = math.log(weight) + (mean * x - mean * mean / 2) / sigma**2
            new = np.logaddexp(total, term)
            moment = moment * np.exp(total - new) + mean * np.exp(term - new)
            total = new
        return total, moment / sigma**2

    low, high = -DEVIATIONS * sigma, float(means[-1]) + DEVIATIONS * sigma
    nodes = np.linspace(low, high, _NODES)
    at_nodes = log_ratio(nodes)[0]
    floor = math.log(mixture[0][0]) if mixture[0][1] == 0 else -math.inf  # no loss lies below it

    def x_at(loss: Array) -> Array:
        x = np.interp(loss, at_nodes, nodes, left=-np.inf, right=np.inf)
        inside = np.isfinite(x)
        value, slope = log_ratio(x[inside])
        x[inside] -= np.clip((value - loss[inside]) / np.maximum(slope, 1e-300), -1e-2 * sigma, 1e-2 * sigma)
        x[loss <= floor] = -np.inf
        return np.maximum.accumulate(x)

    ends = (float(at_nodes[0]), float(at_nodes[-1]))
    outside = float(binom.sf(means[-1], trials, q))
    removed = _connected(mixture, [(1.0, 0.0)], sigma, dx, ends, x_at)
    added = _connected([(1.0, 0.0)], mixture, sigma, dx, (-ends[1], -ends[0]), lambda loss: x_at(-loss[::-1])[::-1])
    return Pair(Loss(dx, removed.low, removed.mass, removed.infinity + outside), added)


def most_counted(q: float, trials: int) -> int:
    """The largest number of successes that is looked at; more have mass below 1e-21 and count as infinite loss."""
    from scipy.stats import binom

    low, high = 0, trials  # by bisection: isf cannot see tails this small, and a list of all may not fit in memory
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if binom.sf(middle, trials, q) < 1e-21 else (middle + 1, high)
    return low


def _log_ratio(q: float, sigma: float, x: float) -> float:
    """ln(1 − q + q·e^((x − 1/2)/σ²)), without overflow."""
    exponent = (x - 0.5) / (sigma * sigma)
    if q == 1:
        return exponent
    first, second = math.log1p(-q), math.log(q) + exponent
    return max(first, second) + math.log1p(math.exp(-abs(first - second)))


def _inverse(q: float, sigma: float, loss: Array) -> Array:
    """The x of a given loss; −∞ at and below ln(1 − q), the least loss there is."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        large = loss + np.log1p(-(1 - q) * np.exp(-np.maximum(loss, 0.0)))
        small = np.log(np.maximum(np.expm1(np.minimum(loss, 0.0)) + q, 0.0))
        log_odds = np.where(loss > 0, large, small)
    return sigma * sigma * (log_odds - math.log(q)) + 0.5


def _connected(
    p: Mixture, q: Mixture, sigma: float, dx: float, ends: tuple[float, float], x_at: Callable[[Array], Array]
) -> Loss:
    """The loss ln(P/Q) under P between the losses ``ends``; ``x_at`` maps ascending losses to x, monotonously."""
    import numpy as np

    low, high = math.floor(ends[0] / dx), math.ceil(ends[1] / dx)
    losses = np.arange(low, high + 1, dtype=np.float64) * dx
    x = x_at(losses)
    a, b = _masses(p, x[:-1], x[1:], sigma), _masses(q, x[:-1], x[1:], sigma)
    start = losses[:-1]
    with np.errstate(over="ignore", invalid="ignore"):
        up = (a - np.exp(np.minimum(start, _LARGEST_EXPONENT)) * b) / -math.expm1(-dx)
    # Where e^ℓ would overflow everything moves up, which is the cautious side; so does what rounding makes of it.
    up = np.where(start > _LARGEST_EXPONENT, a, np.clip(up, 0.0, a))
    mass = np.zeros(len(losses))
    mass[:-1] += a - up
    mass[1:] += up
    rising = x[-1] > x[0]
    outer = np.array([-np.inf, np.inf] if rising else [np.inf, -np.inf])
    mass[0] += float(_masses(p, outer[:1], x[:1], sigma)[0])
    return Loss(dx, low, mass, float(_masses(p, x[-1:], outer[1:], sigma)[0]))


def _masses(mixture: Mixture, start: Array, end: Array, sigma: float) -> Array:
    """Mass of ``mixture`` between ``start`` and ``end``, in either order, with small relative error in both tails."""
    import numpy as np
    from scipy.special import ndtr

    total = np.zeros(len(start))
    for weight, mean in mixture:
        if not weight:
            continue
        one, other = (start - mean) / sigma, (end - mean) / sigma
        # The half of the axis where both are on the far side has the digits.
        sign = np.where(np.nan_to_num(one, posinf=1e300, neginf=-1e300) > 0, -1.0, 1.0)
        total += weight * np.abs(ndtr(sign * other) - ndtr(sign * one))
    return total

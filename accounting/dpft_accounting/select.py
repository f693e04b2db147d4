"""The best of K runs, K drawn once in secret: what the selection adds to one run's privacy loss.

Conditions of both bounds: the runs are independent and alike, each drawing its hyper-parameters afresh from one
fixed distribution; the base guarantee holds for every candidate; K does not depend on the data; outputs are
totally ordered by score, ties broken by independent randomness; nothing of a losing run leaves.

Profile bound. With F the distribution function of the base's score and f the generating function of K, the winner
has density q(y)·f'(F(y)), f' non-decreasing and at most f'(1) = E K. For neighbours the ratio of the two f' is at
most R^(η+1), R = min_h max(e^h, 1 + δ(h)(1 − γ)/γ), because upper tails obey G' <= e^h·G + δ(h). Hence, for ε >= 0,

    truncated negative binomial:  δ_best(ε + (η+1)·ln R) <= E K·δ(ε)
    Poisson of mean m:            δ_best(ε + m·δ(0)) <= m·δ(ε)

(The negative binomial, logarithmic and geometric families and the Rényi bound: Papernot & Steinke 2022.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from .combined import Select
from .errors import Unsupported
from .losses import Pair

_LEAST_DELTA = 1e-13  # of the base: rounding makes smaller ones meaningless


@lru_cache(maxsize=256)
def gamma(select: Select) -> float:
    """γ of the truncated negative binomial with the mean and shape of ``select``. 1 if the mean is 1."""
    from scipy.optimize import brentq

    if select.mean == 1:
        return 1.0
    assert select.shape is not None  # Poisson has no γ
    shape, target = select.shape, math.log(select.mean)
    # The mean falls from infinity to 1 as γ goes from 0 to 1; -ln γ is the natural scale.
    far = 1.0
    while math.log(mean_of(math.exp(-far), shape)) < target:
        far *= 2
        if far > 600:
            raise Unsupported(f"No distribution of shape {shape:g} has mean {select.mean:g} within reach. Raise shape.")
    return math.exp(-float(brentq(lambda x: math.log(mean_of(math.exp(-x), shape)) - target, 1e-12, far, rtol=1e-14)))


def mean_of(gamma: float, shape: float) -> float:
    """E K: η(1 − γ)/(γ(1 − γ^η)), or (1/γ − 1)/ln(1/γ) for η = 0."""
    log = math.log(gamma)
    if log > -1e-9:
        return 1 - (1 + shape) * log / 2  # first order at γ = 1
    odds = math.expm1(-log)
    return odds / -log if abs(shape * log) < 1e-9 else shape * odds / -math.expm1(shape * log)


def best_profile(select: Select, bases: Sequence[Pair], dx: float) -> tuple[Callable[[Any], Any], float]:
    """Upper bound on δ_best(ε) as a function of arrays ε >= 0, and the ε beyond which it is constant.

    Below the smallest ε that the bound speaks of, each (ε_i, δ_i) still gives δ(ε) <= δ_i + (1 − δ_i)(e^ε_i −
    e^ε)/(1 + e^ε_i), the line between (−ε_i, ε_i) in e^ε; the best of these lines at ε = 0 is taken.
    """
    import numpy as np

    def base(epsilon: Any) -> Any:
        return np.max([pair.delta(epsilon) for pair in bases], axis=0)

    shift = _shift(select, base)
    length = max((loss.low + len(loss.mass)) * dx for pair in bases for loss in (pair.remove, pair.add))
    reach = shift + max(length, 0.0) + dx
    grid = shift + np.arange(math.ceil((reach - shift) / dx) + 1) * dx
    values = np.minimum(1.0, select.mean * base(grid - shift))
    # Same line as above, written without large exponentials.
    at_zero = values - (1 - values) * np.expm1(-grid) / (1 + np.exp(-grid))
    best = int(np.argmin(at_zero))
    touch, there = float(grid[best]), float(values[best])

    def profile(epsilon: Any) -> Any:
        line = there - (1 - there) * np.expm1(np.minimum(epsilon - touch, 0.0)) / (1 + math.exp(-touch))
        return np.where(epsilon < touch, line, np.minimum(1.0, select.mean * base(np.maximum(epsilon - shift, 0.0))))

    return profile, max(reach, touch)


def _shift(select: Select, base: Callable[[Any], Any]) -> float:
    """How far the profile moves to the right: (η + 1)·ln R, or m·δ(0) for Poisson."""
    import numpy as np
    from scipy.optimize import brentq

    def at(epsilon: float) -> float:
        return float(base(np.float64(epsilon))) + _LEAST_DELTA

    if select.dist == "poisson":
        return select.mean * at(0.0)
    assert select.shape is not None  # all others have one
    odds = 1 / gamma(select) - 1
    if odds == 0:
        return 0.0

    def excess(h: float) -> float:
        return math.log1p(odds * at(h)) - h

    far = math.log1p(odds)  # where even δ = 1 is enough
    h = float(brentq(excess, 0.0, far, xtol=1e-12)) if excess(far) < 0 else far
    return (select.shape + 1) * max(h, math.log1p(odds * at(h)))

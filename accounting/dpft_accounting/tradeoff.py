"""From the privacy profile δ(ε) to what an attacker can reach at best.

Every test between two neighbouring data sets with false-positive rate α has a miss rate of at least

    β(α) = max(0, sup_{ε>=0} 1 − δ(ε) − e^ε·α, sup_{ε>=0} e^(−ε)·(1 − δ(ε) − α))

(Dong et al. 2019, proposition 2.12, applied to an upper bound on δ). An upper bound on δ gives an upper bound on
the attacker's power at any set of ε, so a grid of ε can only make the answer too cautious, never too bold. The tails
of the loss's mass are never read: rounding ruins them long before it is seen in δ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import analytic, pld
from .compose import Composition
from .steps import composition_variance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Curve = Callable[[Array], Array]

_GRID = 4e-4  # four digits of power, says the reference
_FARTHEST = 60.0
_POINTS = 4001
_ZOOMS = 3


def curve_of(compositions: Sequence[Composition]) -> Curve:
    """Upper bound on δ at arrays of ε >= 0: closed form, or PLD, raised to 1e-9 where rounding has a say."""
    curves = [_curve(composition) for composition in compositions]

    def worst(epsilon: Array) -> Array:
        import numpy as np

        highest: Array = np.max([curve(epsilon) for curve in curves], axis=0)
        return highest

    return worst


def power(curve: Curve, alpha: float) -> float:
    """Upper bound on the true-positive rate of any test with false-positive rate ``alpha``: 1 − β(alpha)."""
    import numpy as np

    if alpha <= 0:
        return min(1.0, float(curve(np.array([_FARTHEST]))[0]))

    def both(epsilon: Array) -> Array:
        delta = curve(epsilon)
        with np.errstate(over="ignore"):
            first = delta + np.exp(epsilon) * alpha
        return np.minimum(np.minimum(first, 1 - np.exp(-epsilon) * (1 - delta - alpha)), 1.0)

    low, high = 0.0, _FARTHEST
    best = 1.0
    for _ in range(_ZOOMS):
        epsilon = np.linspace(low, high, _POINTS)
        found = both(epsilon)
        at = int(np.argmin(found))
        best = min(best, float(found[at]))
        width = (high - low) / (_POINTS - 1)
        low, high = max(0.0, float(epsilon[at]) - 2 * width), float(epsilon[at]) + 2 * width
    return max(best, min(alpha, 1.0))


def _curve(composition: Composition) -> Curve:
    import numpy as np

    if composition.is_empty or composition.is_infinite:
        level = 1.0 if composition.is_infinite else 0.0
        return lambda epsilon: np.full_like(epsilon, level)
    if not composition.parts:
        return lambda epsilon: np.exp(_log_gaussian(epsilon, composition.mu))
    dx = min(pld.grid(composition, 0.1 * math.sqrt(composition_variance(composition)), 1e-6, 1e-3), _GRID)
    pair, _ = pld.fitting(composition, dx)
    return lambda epsilon: np.maximum(pair.delta(epsilon), pld.SOUND_DELTA)


def _log_gaussian(epsilon: Array, mu: float) -> Array:
    import numpy as np

    return np.array([min(0.0, analytic.log_delta(float(e), mu)) for e in np.ravel(epsilon)]).reshape(epsilon.shape)

"""Root finding for calibration: evaluations are costly, and the end must be on the private side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .bound import Bound
from .errors import Unsupported

_MAX_EVALUATIONS = 80
_LONGEST_MOVE = 2.0  # in either logarithm: the local power law is not trusted further


@dataclass(frozen=True)
class Found:
    """A value and the bound at exactly this value; the bound is within the target."""

    value: float
    bound: Bound


def search(
    at: Callable[[float], Bound],
    start: float,
    target: float,
    scale: Callable[[float], float] = float,
    *,
    rtol: float,
    slope: Literal[-1, 1],
    snap: Callable[[float], float],
) -> Found:
    """A value where scale(at(value).upper) lies in [target·(1 − rtol), target], by secant steps in ln, ln.

    ``scale``: non-decreasing, and such that the result follows roughly a power law in the value. ``slope``: 1 if
    it grows with the value, −1 if it falls. ``snap`` rounds a positive value to one that may be used, towards the
    private side. Where no usable value lies within rtol, the nearest one on the private side is returned.
    Guarantee: scale(``bound.upper``) <= ``target``, never by extrapolation. Errors: Unsupported if there is no
    such value.
    """
    aim = math.log(target) + math.log1p(-rtol / 2)
    best: Found | None = None  # nearest value that is private enough
    worst: float | None = None  # nearest value that is not
    previous: tuple[float, float] | None = None
    power = float(slope)
    value = snap(start)
    for _ in range(_MAX_EVALUATIONS):
        bound = at(value)
        loss = scale(bound.upper)
        if loss <= target:
            best = Found(value, bound)
            if loss >= target * (1 - rtol):
                return best
        else:
            worst = value
        x, y = math.log(value), _clipped(math.log(max(loss, 1e-300)) - aim)
        if previous is not None and previous[0] != x:
            power = (y - previous[1]) / (x - previous[0])
        power = power if power * slope > 0 else float(slope)
        previous = (x, y)
        last, value = value, snap(math.exp(x - _clipped(y / power)))
        if best is not None and worst is not None:
            low, high = sorted((best.value, worst))
            if not low < value < high:
                value = snap(math.sqrt(low * high))
            if not low < value < high:  # nothing usable lies between them
                return best
        elif value == last:  # the move was lost in rounding: double or halve
            value = snap(last * 2.0 ** (-slope if loss > target else slope))
            if value == last:
                break
    if best is not None:
        return best
    raise Unsupported("Nothing that may be chosen reaches the target. Choose a larger epsilon or risk.")


def _clipped(move: float) -> float:
    return min(max(move, -_LONGEST_MOVE), _LONGEST_MOVE)

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
    """A value and the bound on ε at exactly this value; the bound is within the target."""

    value: float
    bound: Bound


def search(
    at: Callable[[float], Bound],
    start: float,
    target: float,
    *,
    rtol: float,
    slope: Literal[-1, 1],
    snap: Callable[[float], float],
) -> Found:
    """A value where ε = at(value).upper lies in [target·(1 − rtol), target], by secant steps in ln, ln.

    ``slope``: 1 if ε grows with the value, −1 if it falls. ``snap`` rounds a positive value to one that may
    be used, towards the private side. Where no usable value lies within rtol, the nearest one on the private
    side is returned.
    Guarantee: ``bound.upper`` <= ``target``, never by extrapolation. Errors: Unsupported if there is no such
    value.
    """
    aim = math.log(target) + math.log1p(-rtol / 2)
    best: Found | None = None  # nearest value that is private enough
    worst: float | None = None  # nearest value that is not
    previous: tuple[float, float] | None = None
    power = float(slope)
    value = snap(start)
    for _ in range(_MAX_EVALUATIONS):
        bound = at(value)
        if bound.upper <= target:
            best = Found(value, bound)
            if bound.upper >= target * (1 - rtol):
                return best
        else:
            worst = value
        x, y = math.log(value), _clipped(math.log(max(bound.upper, 1e-300)) - aim)
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
            value = snap(last * 2.0 ** (-slope if bound.upper > target else slope))
            if value == last:
                break
    if best is not None:
        return best
    raise Unsupported(f"Nothing that may be chosen reaches epsilon={target:g}. Choose a larger epsilon.")


def _clipped(move: float) -> float:
    return min(max(move, -_LONGEST_MOVE), _LONGEST_MOVE)

"""Discrete privacy losses on a grid: compose, mix, read δ and ε. Numbers only, no privacy theory.

A ``Loss`` is the distribution of ln(P/Q) under P for a pair that dominates the mechanism's, so every δ read from
it is an upper bound but for rounding of about 1e-12 (see ``pld.SOUND_DELTA``). References: Koskela et al. 2020;
Doroshenko et al. 2022. What dp-accounting does in the same place is slower by a factor of 2 to 30: here real FFTs,
a Chernoff window with few orders, and δ at all grid points from two running sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .errors import Unsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MAX_POINTS = 2e7  # about three seconds and a gigabyte
_COARSE = 4000  # cells on which the order of a Chernoff bound is chosen
_TAIL = 1e-15  # mass that a composition may cut off; it is charged as an infinite loss


class TooLarge(Unsupported):
    """The loss does not fit in memory on this grid."""


@dataclass(frozen=True, eq=False)
class Loss:
    """Mass ``mass[i]`` at loss ``(low + i)·dx``, and ``infinity`` beyond all bounds."""

    dx: float
    low: int
    mass: Array
    infinity: float

    def power(self, times: int) -> Loss:
        """The loss of ``times`` independent repetitions."""
        import numpy as np
        from scipy import fft

        if times == 1:
            return self
        first, last = _window(self.mass, times)
        size = last - first + 1
        if size > MAX_POINTS:
            raise TooLarge(f"A privacy loss of about {size * self.dx / 2:.3g} is too large for the grid of pld.")
        length = fft.next_fast_len(max(size, len(self.mass)), real=True)
        # The transform wraps round; what lies outside of the window has at most _TAIL.
        around = fft.irfft(fft.rfft(self.mass, length) ** times, length)
        mass = np.roll(around, -first)[:size]
        infinity = _TAIL - math.expm1(times * math.log1p(-self.infinity))
        expected = math.exp(times * math.log(float(self.mass.sum())))
        return _charged(self.dx, self.low * times + first, mass, infinity, expected)

    def compose(self, other: Loss) -> Loss:
        """The loss of both, independently."""
        import numpy as np
        from scipy import signal

        if len(self.mass) + len(other.mass) > MAX_POINTS:
            raise TooLarge("The privacy losses of several mechanisms together are too large for the grid of pld.")
        mass = signal.fftconvolve(self.mass, other.mass)
        kept = np.flatnonzero((np.cumsum(mass) > _TAIL) & (np.cumsum(mass[::-1])[::-1] > _TAIL))
        start, stop = (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (0, len(mass))
        infinity = self.infinity + other.infinity - self.infinity * other.infinity + _TAIL
        # What is cut at the lower end moves up to the first cell that is kept: more loss, never less.
        mass[start] += max(0.0, float(mass[:start].sum()))
        expected = float(self.mass.sum()) * float(other.mass.sum())
        return _charged(self.dx, self.low + other.low + start, mass[start:stop], infinity, expected)

    def mixed(self, other: Loss, weight: float) -> Loss:
        """``weight`` parts of this loss and the rest of ``other``."""
        import numpy as np

        low = min(self.low, other.low)
        mass = np.zeros(max(self.low + len(self.mass), other.low + len(other.mass)) - low)
        for loss, share in ((self, weight), (other, 1 - weight)):
            mass[loss.low - low : loss.low - low + len(loss.mass)] += share * loss.mass
        return Loss(self.dx, low, mass, weight * self.infinity + (1 - weight) * other.infinity)

    def delta(self, epsilon: Array) -> Array:
        """δ at each ``epsilon`` >= 0 (any shape), by the line through its two neighbouring grid points."""
        import numpy as np

        base, above, weighted = self._tails
        index = np.clip(np.floor(epsilon / self.dx) - base, 0, len(above) - 1).astype(np.int64)
        gap = epsilon - (base + index) * self.dx
        # Past the last cell both sums are zero, however large the gap.
        found = self.infinity + above[index] - np.exp(np.minimum(gap, 700)) * weighted[index]
        clipped: Array = np.clip(found, 0.0, 1.0)
        return clipped

    def epsilon(self, delta: float) -> float:
        """Least ε >= 0 with δ(ε) <= ``delta``; infinite if even the infinite losses have more."""
        import numpy as np

        if self.infinity > delta:
            return math.inf
        base, above, weighted = self._tails
        too_much = np.flatnonzero(self.infinity + above - weighted > delta)
        if not len(too_much):
            return 0.0
        k = int(too_much[-1])  # from the far end: rounding must not stop the search early
        start = (base + k) * self.dx
        ratio = (self.infinity + float(above[k]) - delta) / max(float(weighted[k]), 1e-300)
        return max(0.0, min(start + math.log(max(ratio, 1.0)), start + self.dx))

    @cached_property
    def _tails(self) -> tuple[int, Array, Array]:
        """First grid index b <= 0, and for k = b, b+1, …: mass above ℓ_k, and the same weighted by e^(ℓ_k − ℓ)."""
        import numpy as np
        from scipy import signal

        base = min(-1, self.low - 1)
        mass = np.concatenate([np.zeros(self.low - base), self.mass])
        if base < -1:  # negative ε are never asked for; ε just above -dx·1 need all mass above it
            mass, base = mass[-1 - base :], -1
        mass = mass if len(mass) else np.zeros(1)
        above = np.concatenate([np.cumsum(mass[:0:-1])[::-1], [0.0]])
        decay = math.exp(-self.dx)
        # C_(k-1) = e^(-dx)·(C_k + p_k), run from the far end: no large exponentials, no cancellation.
        weighted = signal.lfilter([0.0, decay], [1.0, -decay], mass[::-1])[::-1]
        return base, above, weighted


@dataclass(frozen=True, eq=False)
class Pair:
    """Losses of both directions: unit removed, unit added."""

    remove: Loss
    add: Loss

    def each(self, change: Callable[[Loss], Loss]) -> Pair:
        """``change`` in both directions; done once where they are the same."""
        removed = change(self.remove)
        return Pair(removed, removed if self.add is self.remove else change(self.add))

    def compose(self, other: Pair) -> Pair:
        """Both, independently, direction by direction."""
        removed = self.remove.compose(other.remove)
        same = self.add is self.remove and other.add is other.remove
        return Pair(removed, removed if same else self.add.compose(other.add))

    def reversed(self) -> Pair:
        """The two directions exchanged."""
        return Pair(self.add, self.remove)

    def delta(self, epsilon: Any) -> Array:
        """The larger δ of both directions."""
        import numpy as np

        asked = np.asarray(epsilon, dtype=np.float64)
        return self.remove.delta(asked) if self.add is self.remove else np.maximum(
            self.remove.delta(asked), self.add.delta(asked)
        )  # fmt: skip

    def epsilon(self, delta: float) -> float:
        """The larger ε of both directions."""
        return max(self.remove.epsilon(delta), self.add.epsilon(delta))


def from_profile(profile: Callable[[Array], Array], dx: float, reach: float) -> Pair:
    """A loss whose δ(ε) is ``profile`` at the grid points (connecting the dots), the same in both directions.

    ``profile``: upper bound on δ at ε >= 0, non-increasing and convex in e^ε; losses beyond ``reach`` count as
    infinite. For ε < 0, δ(ε) = 1 − e^ε(1 − δ(−ε)). From h_k = δ(ℓ_k): C_k = (h_k − h_(k+1))/(e^dx − 1) is the
    weighted tail of ``_tails``, and p_k + C_k = (h_(k-1) − h_k)/(1 − e^(-dx)).
    """
    import numpy as np

    top = math.ceil(reach / dx)
    if 2 * top > MAX_POINTS:
        raise TooLarge(f"A privacy loss of about {reach:.3g} is too large for the grid of pld.")
    positive = profile(np.arange(top + 1, dtype=np.float64) * dx)
    scale = np.exp(-np.arange(top, 0, -1) * dx)
    h = np.concatenate([1 - scale * (1 - positive[:0:-1]), positive])
    fall = np.maximum(h[:-1] - h[1:], 0.0)
    tails = np.concatenate([fall / math.expm1(dx), [0.0]])
    mass = np.concatenate([[0.0], fall / -math.expm1(-dx)]) - tails
    mass = np.maximum(mass, 0.0)  # rounding; more mass is more loss
    mass[0] = max(0.0, 1 - float(mass[1:].sum()) - float(h[-1]))
    loss = Loss(dx, -top, np.asarray(mass, dtype=np.float64), float(h[-1]))
    return Pair(loss, loss)


def _charged(dx: float, low: int, mass: Array, infinity: float, expected: float) -> Loss:
    """A computed loss; mass that rounding has lost or made, against ``expected``, is charged as infinite loss."""
    # Not against 1: the library's one-step mass sums to slightly more, at negative losses, where it is harmless.
    return Loss(dx, low, mass, min(infinity + abs(expected - float(mass.sum())), 1.0))


def _window(mass: Array, times: int) -> tuple[int, int]:
    """First and last index of the ``times``-fold sum outside of which lies at most _TAIL (Chernoff)."""
    import numpy as np

    index = np.arange(len(mass), dtype=np.float64)
    positive = np.maximum(mass, 0.0)
    # Sums, not @: for vectors of this size the threads of a BLAS cost more than they save.
    mean = float((index * positive).sum())
    spread = math.sqrt(times * max(float(((index - mean) ** 2 * positive).sum()), 1e-12))
    # Any order gives a valid bound, so the best one may be guessed on a coarse copy, where it costs nothing.
    block = -(-len(mass) // _COARSE)
    starts = np.arange(0, len(mass), block)
    coarse = np.add.reduceat(positive, starts)
    centre = np.asarray(starts + (block - 1) / 2, dtype=np.float64)
    best = math.sqrt(2 * math.log(2 / _TAIL)) / spread  # for a normal sum; heavier tails want smaller orders
    orders = np.geomspace(min(0.3 / len(mass), best), min(2 * best, 600 / len(mass)), 24)

    def reach(sign: float, order: float, where: Array, weights: Array) -> float:
        moment = math.log(float((np.exp(sign * order * (where - mean)) * weights).sum()))
        return (times * moment + math.log(2 / _TAIL)) / order

    above, below = (
        reach(sign, min(map(float, orders), key=lambda order: reach(sign, order, centre, coarse)), index, positive)
        for sign in (1.0, -1.0)
    )
    first = max(0, math.floor(times * mean - below))
    return first, max(first, min((len(mass) - 1) * times, math.ceil(times * mean + above)))

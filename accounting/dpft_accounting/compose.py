"""Several mechanisms run one after the other on the same data, in the one form that all accountants take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .mechanisms import Gaussian, Mechanism, PoissonGaussian
from .units import Adjacency, Unit

# More noise than this is accounted as this much, which is sound; the libraries square sigma and divide by it.
_MOST_NOISE = 1e8


@dataclass(frozen=True)
class Composition:
    """Sequential composition under one adjacency, equal parts merged.

    ``mu``: all full-batch parts together are exactly one Gaussian of this μ, sensitivity included.
    ``poisson``: the subsampled parts (q < 1), one for each (q, sigma), steps added up.
    Valid when q, sigma and steps of every part are fixed in advance or depend on public values only.
    """

    mu: float
    poisson: tuple[PoissonGaussian, ...]
    adjacency: Adjacency

    @property
    def is_empty(self) -> bool:
        """Nothing was run."""
        return not self.mu and not self.poisson

    @property
    def is_infinite(self) -> bool:
        """Some part adds no noise at all: nothing is protected."""
        return math.isinf(self.mu) or any(part.sigma == 0 for part in self.poisson)


def compose(mechanisms: Iterable[Mechanism], unit: Unit) -> Composition:
    """Sequential composition of ``mechanisms``; the order does not matter, steps = 0 counts for nothing."""
    mus = []
    poisson: dict[tuple[float, float], int] = {}
    for mechanism in mechanisms:
        if mechanism.steps == 0:
            continue
        sigma = min(mechanism.sigma, _MOST_NOISE)
        if isinstance(mechanism, Gaussian) or mechanism.q == 1:
            scale = math.inf if sigma == 0 else math.sqrt(mechanism.steps) / sigma
            mus.append(unit.sensitivity * scale)
        else:
            key = (mechanism.q, sigma)
            poisson[key] = poisson.get(key, 0) + mechanism.steps
    parts = tuple(PoissonGaussian(q, sigma, steps) for (q, sigma), steps in sorted(poisson.items()))
    return Composition(math.hypot(*mus), parts, unit.adjacency)

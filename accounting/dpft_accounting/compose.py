"""Several mechanisms run one after the other on the same data, in the one form that all accountants take.

Every mechanism is rewritten into a few kinds of single steps, equal ones are counted together, and all full
batches become one Gaussian. Where a unit may be in one of several parts of the data there is one composition for
each, and the truth is the worst of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from .combined import EpsDelta, Parallel, Select, Sequential
from .errors import AccountingError, Unsupported
from .sampled import BandedMF, Gaussian, PoissonGaussian, ShuffledGaussian, TruncatedPoissonGaussian, UserELS
from .units import Adjacency, Unit
from .value import Mechanism

# More noise than this is accounted as this much, which is sound; the libraries square sigma and divide by it.
_MOST_NOISE = 1e8
_MOST_ALTERNATIVES = 1000

# forward: the unit is there in the first data set and missing (or blank) in the second, and both ways round;
# backward: the same with the two exchanged, for a part that the unit leaves while it enters another; replace.
Relation = Literal["forward", "backward", "replace"]


@dataclass(frozen=True)
class Chosen:
    """One ``Select``, with its base in composed form."""

    select: Select
    bases: tuple[Composition, ...]


Step = Gaussian | PoissonGaussian | TruncatedPoissonGaussian | UserELS | EpsDelta | Chosen


@dataclass(frozen=True)
class Part:
    """``steps`` independent repetitions of one step."""

    step: Step
    steps: int
    relation: Relation


@dataclass(frozen=True)
class Composition:
    """Sequential composition, equal parts merged.

    ``mu``: all full-batch steps together are exactly one Gaussian of this μ, sensitivity included.
    ``parts``: everything else, each kind of step once.
    Valid when the parameters of every part are fixed in advance or depend on public values only.
    """

    mu: float
    parts: tuple[Part, ...]

    @property
    def is_empty(self) -> bool:
        """Nothing was run."""
        return not self.mu and not self.parts

    @property
    def is_infinite(self) -> bool:
        """Some part adds no noise at all: nothing is protected."""
        return math.isinf(self.mu) or any(_is_infinite(part.step) for part in self.parts)

    @property
    def poisson(self) -> tuple[tuple[PoissonGaussian, int], ...] | None:
        """The parts as Poisson steps and their numbers, or None if any is something else, or not forward."""
        found = [(part.step, part.steps) for part in self.parts if isinstance(part.step, PoissonGaussian)]
        plain = len(found) == len(self.parts) and all(part.relation == "forward" for part in self.parts)
        return tuple(found) if plain else None


def _is_infinite(step: Step) -> bool:
    if isinstance(step, Chosen):
        return any(base.is_infinite for base in step.bases)
    return not isinstance(step, EpsDelta) and step.sigma == 0


def compose(mechanisms: Iterable[Mechanism], unit: Unit) -> tuple[Composition, ...]:
    """Sequential composition of ``mechanisms``: one composition for each part of the data that a unit can be in.

    Errors: Unsupported if a mechanism has no proof under the unit's adjacency, or its n is not the unit's.
    """
    bags: list[_Bag] = _expanded(Sequential(mechanisms), unit, unit.adjacency, _relation(unit))
    return tuple(dict.fromkeys(_composition(bag) for bag in bags))


_Bag = Counter[tuple[Step, Relation]]


def _relation(unit: Unit) -> Relation:
    return "replace" if unit.adjacency == "replace" else "forward"


def _expanded(mechanism: Mechanism, unit: Unit, adjacency: Adjacency, relation: Relation) -> list[_Bag]:
    """The single steps of ``mechanism``, for each of the parts that a unit can be in."""
    if mechanism.planned == 0:
        return [Counter()]
    if adjacency not in mechanism.adjacencies:
        raise Unsupported(
            f"{type(mechanism).__name__} has a proof under {' and '.join(mechanism.adjacencies)} only, found "
            f"{adjacency}. Choose a unit with that adjacency if it is the true one, or another mechanism."
        )
    if isinstance(mechanism, Sequential):
        bags: list[_Bag] = [Counter()]
        for part in mechanism.mechanisms:
            bags = _together(bags, _expanded(part, unit, adjacency, relation))
        return bags
    if isinstance(mechanism, Parallel):
        return _branches(mechanism, unit, adjacency, relation)
    if isinstance(mechanism, Select):
        bases = tuple(_composition(bag) for bag in _expanded(mechanism.base, unit, adjacency, relation))
        nothing = all(base.is_empty for base in bases)
        return [Counter() if nothing else Counter({(Chosen(mechanism, bases), relation): 1})]
    if isinstance(mechanism, EpsDelta) and adjacency != unit.adjacency:
        raise Unsupported(
            "A stated guarantee under replace says nothing of a unit that leaves one part and enters another. "
            "State it for the whole data set, outside of Parallel and parts."
        )
    step, steps = _single(mechanism, unit)
    return [Counter({(step, relation): steps})]


def _branches(mechanism: Parallel, unit: Unit, adjacency: Adjacency, relation: Relation) -> list[_Bag]:
    own = [bag for _, part in mechanism.parts for bag in _expanded(part, unit, adjacency, relation)]
    if relation != "replace":
        return own
    # The old unit leaves one part and the new one enters another; the other way round is the same pair reversed.
    crossing: list[_Bag] = []
    for (_, left), (_, entered) in combinations(mechanism.parts, 2):
        leaving = _expanded(left, unit, "add_remove", "forward")
        crossing += _together(leaving, _expanded(entered, unit, "add_remove", "backward"))
    return own + crossing


def _together(first: list[_Bag], second: list[_Bag]) -> list[_Bag]:
    if len(first) * len(second) > _MOST_ALTERNATIVES:
        raise AccountingError(
            f"Expected at most {_MOST_ALTERNATIVES} combinations of disjoint parts, found "
            f"{len(first) * len(second)}. Put what touches the same part into one branch of one Parallel."
        )
    return [one + other for one in first for other in second]


def _single(mechanism: Mechanism, unit: Unit) -> tuple[Step, int]:
    """One step of a mechanism that is no combination, in its simplest form, and the number of them."""
    steps = mechanism.planned
    if isinstance(mechanism, ShuffledGaussian):
        return Gaussian(_sigma(mechanism)), steps
    if isinstance(mechanism, EpsDelta):
        return mechanism, 1
    if isinstance(mechanism, UserELS) and mechanism.max_per_user > 1 and mechanism.q < 1:
        return UserELS(mechanism.q, _sigma(mechanism), 1, mechanism.max_per_user), steps
    if isinstance(mechanism, UserELS):
        return _poisson(mechanism.q, _sigma(mechanism) / (mechanism.max_per_user if mechanism.q == 1 else 1)), steps
    if isinstance(mechanism, TruncatedPoissonGaussian):
        if mechanism.n != unit.n_public:
            raise Unsupported(
                f"Expected a truncated Poisson sample of the unit's n_public={unit.n_public} units, found "
                f"n={mechanism.n}. Give both the same."
            )
        if mechanism.cap < mechanism.n:
            step = TruncatedPoissonGaussian(mechanism.n, mechanism.q, mechanism.cap, _sigma(mechanism), 1)
            return step, steps
        return _poisson(mechanism.q, _sigma(mechanism)), steps
    if isinstance(mechanism, BandedMF):
        return _poisson(min(1.0, mechanism.bands * mechanism.q), _sigma(mechanism)), -(-steps // mechanism.bands)
    if isinstance(mechanism, Gaussian):
        return Gaussian(_sigma(mechanism)), steps
    if isinstance(mechanism, PoissonGaussian):
        return _poisson(mechanism.q, _sigma(mechanism)), steps
    raise Unsupported(f"No accountant knows mechanisms of kind {mechanism.kind!r}.")


def _sigma(mechanism: Mechanism) -> float:
    return min(float(getattr(mechanism, "sigma")), _MOST_NOISE)  # noqa: B009 - the base class has none


def _poisson(q: float, sigma: float) -> Gaussian | PoissonGaussian:
    return Gaussian(sigma) if q == 1 else PoissonGaussian(q, sigma, 1)


def _composition(bag: _Bag) -> Composition:
    mus = []
    parts = []
    for (step, relation), steps in bag.items():
        if isinstance(step, Gaussian):
            scale = math.inf if step.sigma == 0 else math.sqrt(steps) / step.sigma
            mus.append(2 * scale if relation == "replace" else scale)
        elif not (isinstance(step, EpsDelta) and step.epsilon == step.delta == 0):
            parts.append(Part(step, steps, relation))
    # One order for all orders of running: equal compositions must be equal values.
    return Composition(math.hypot(*sorted(mus)), tuple(sorted(parts, key=repr)))

"""What a ledger's entries cost together, which may still be planned, and how much noise the next run needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .accountants import epsilon_of
from .bound import Bound
from .budget import Budget
from .calibrate import calibrate, fits, steps_within
from .compose import compose
from .errors import Unsupported
from .filter import RenyiFilter
from .mechanisms import Mechanism, Parallel, PoissonGaussian, Sequential
from .units import Unit

WHOLE = ("all",)  # the parts of a run that touches the whole data set
Entry = tuple[Mechanism, tuple[str, ...]]

_MOST_STEPS = 10**9


def together(entries: Iterable[Entry], parts: Sequence[str], unit: Unit) -> Mechanism:
    """All ``entries`` as one mechanism: in sequence on what they share, in parallel on disjoint ``parts``.

    Every unit is in at most one of ``parts``, and which one follows from that unit alone. Under replace the old unit
    may be in one part and the new one in another; an entry that touches both sees a replacement, so whatever touches
    several parts is taken as touching all.
    """
    listed = list(entries)
    if not parts:
        return Sequential(mechanism for mechanism, _ in listed)
    several = 1 if unit.adjacency == "replace" else len(parts)

    def is_shared(where: tuple[str, ...]) -> bool:
        return where == WHOLE or len(where) > several

    shared = [mechanism for mechanism, where in listed if is_shared(where)]
    own = {part: Sequential(m for m, where in listed if part in where and not is_shared(where)) for part in parts}
    return Sequential([*shared, Parallel(own)])


@dataclass(frozen=True)
class Room:
    """What the budget leaves for one more run: it needs ``sigma``, and is by itself worth ``epsilon``."""

    run: Mechanism
    sigma: float
    epsilon: Bound


@dataclass(frozen=True)
class Rules:
    """How a ledger adds up: its unit, budget, disjoint parts, and filter (None: every run is planned in advance)."""

    unit: Unit
    budget: Budget | None
    parts: tuple[str, ...]
    filter: RenyiFilter | None

    def spent(self, entries: Iterable[Entry], delta: float) -> Bound:
        """ε at ``delta`` of all entries; ``delta`` has been checked."""
        total = together(entries, self.parts, self.unit)
        if self.filter is not None:
            return self.filter.spent(total, self.unit, delta)
        return epsilon_of(compose([total], self.unit), delta)

    def admits(self, entries: Sequence[Entry]) -> bool:
        """Whether all entries together stay within the budget. True without one."""
        if self.budget is None:
            return True
        total = together(entries, self.parts, self.unit)
        if self.filter is not None:
            return self.filter.divergence(total, self.unit) <= self.filter.limit(self.budget)
        return fits([total], self.unit, self.budget)

    def steps_left(self, entries: Sequence[Entry], mechanism: Mechanism, parts: tuple[str, ...]) -> int:
        """Most steps of ``mechanism`` on ``parts`` that fit beside ``entries``; the budget must not be None."""
        assert self.budget is not None  # the caller has said so
        if self.filter is None:
            return steps_within(lambda k: together([*entries, (mechanism.with_steps(k), parts)], self.parts, self.unit),
                                self.unit, self.budget)  # fmt: skip
        low, high = 0, 1
        while high <= _MOST_STEPS and self.admits([*entries, (mechanism.with_steps(high), parts)]):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fitting = self.admits([*entries, (mechanism.with_steps(middle), parts)])
            low, high = (middle, high) if fitting else (low, middle)
        return low

    def room(self, entries: Sequence[Entry], q: float, steps: int, parts: tuple[str, ...]) -> Room | None:
        """Least noise at which ``steps`` Poisson steps at rate ``q`` fit beside ``entries``, or None if none does."""
        assert self.budget is not None  # the caller has said so

        def total(sigma: float) -> Mechanism:
            return together([*entries, (PoissonGaussian(q, sigma, steps), parts)], self.parts, self.unit)

        try:
            sigma = self._least_noise(total)
        except Unsupported:
            return None
        run = PoissonGaussian(q, sigma, steps)
        return Room(run, sigma, epsilon_of(compose([run], self.unit), self.budget.delta))

    def _least_noise(self, total: Callable[[float], Mechanism]) -> float:
        assert self.budget is not None  # the caller has said so
        if self.filter is None:
            return calibrate(total, self.unit, self.budget).value
        limit = self.filter.limit(self.budget)
        low, high = math.log(0.05), math.log(1e6)
        if self.filter.divergence(total(math.exp(high)), self.unit) > limit:
            raise Unsupported("The filter has nothing left.")
        for _ in range(40):
            middle = (low + high) / 2
            enough = self.filter.divergence(total(math.exp(middle)), self.unit) <= limit
            low, high = (low, middle) if enough else (middle, high)
        return math.exp(high)

"""Tuning inside the budget: draw K in secret, run K random candidates, release the best one and nothing else.

The bounds and their conditions stand in ``select.py``. A fixed number of runs is ordinary composition instead; a
grid walked in order and Bayesian search are not covered.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from ._check import integer, real, text
from .bound import Bound
from .budget import Budget
from .calibrate import calibrate
from .combined import Parallel, Select, Sequential, Trials
from .errors import AccountingError
from .ledger import Ledger
from .sampled import Gaussian
from .select import gamma
from .units import Unit
from .value import Mechanism

Output = TypeVar("Output")
Space = Mapping[str, Sequence[Any]] | Callable[[random.Random], Any]

_NEVER = 1e-18  # of a further trial: less than the generator's 53 bits can tell from zero
_SCORE_GRID = 2.0**-10  # noisy counts are rounded to it, so that the last bits of the noise say nothing


@dataclass(frozen=True)
class NoisyCount:
    """The score is a count on private records (say of right answers), each counting 0 or 1, plus Gaussian noise.

    ``sigma``: standard deviation of the noise, in counts; the sensitivity is 1 under add_remove and zero_out, and
    the accountant takes it as 2 under replace. ``disjoint``: no counted record is trained on, and whether it is
    counted or trained on follows from that record alone; then its cost runs in parallel to the training's.
    """

    sigma: float
    disjoint: bool = False

    def __post_init__(self) -> None:
        if not real("sigma", self.sigma, minimum=0) > 0:
            raise AccountingError("Expected a score noise sigma above 0, found 0. Noise it, or score on public data.")

    def beside(self, training: Mechanism) -> Mechanism:
        """One trial: the training and its score."""
        score = Gaussian(self.sigma)
        if self.disjoint:
            return Parallel({"training": training, "scoring": score})
        return Sequential([training, score])


@dataclass(frozen=True)
class TuningPlan:
    """``sigma`` is the noise multiplier of every trial; ``bound`` the ε of the whole search; charge ``select``."""

    sigma: float
    select: Select
    unit: Unit
    budget: Budget
    score: Literal["public"] | NoisyCount
    bound: Bound


@dataclass(frozen=True)
class Winner(Generic[Output]):
    """The one candidate that leaves: its hyper-parameters, its score as released, its output."""

    params: Any
    score: float
    output: Output


def plan_tuning(
    base: Callable[[float], Mechanism],
    budget: Budget,
    mean_trials: float,
    dist: Trials = "geometric",
    score: Literal["public"] | NoisyCount = "public",
    *,
    unit: Unit,
    shape: float | None = None,
) -> TuningPlan:
    """The noise of each trial so that the best of K, E K = ``mean_trials``, stays within ``budget``.

    ``base``: σ → mechanism of one trial's training, the same for every candidate (clip, batch rate and number of
    steps may not depend on the candidate unless ``base`` is the costliest of them). ``score``: "public" if it is
    computed on public data alone, else a ``NoisyCount``, whose cost is included. Geometric K is the default: of
    the distributions it wastes least where a search is worth its price.
    Errors: AccountingError for a meaningless target; Unsupported if no noise reaches it.
    """
    if score != "public" and not isinstance(score, NoisyCount):
        raise AccountingError(f"Expected score to be 'public' or a NoisyCount, found {score!r:.60}.")

    def select(sigma: float) -> Select:
        trial = base(sigma) if score == "public" else score.beside(base(sigma))
        return Select(trial, mean_trials, dist, shape)

    found = calibrate(select, unit, budget)
    return TuningPlan(found.value, select(found.value), unit, budget, score, found.bound)


def run_tuning(
    plan: TuningPlan,
    trial: Callable[[Any, float], tuple[float, Output]],
    space: Space,
    ledger: Ledger,
    rng: random.Random | None = None,
    *,
    name: str = "tuning",
) -> Winner[Output] | None:
    """Charge the whole search, run it, return the winner alone. None if Poisson drew no trial at all.

    ``trial(params, sigma)`` trains with noise multiplier ``sigma`` and returns (score, output); higher is better.
    For a ``NoisyCount`` it returns the exact count, and the noise is added here. It must not write, log or send
    anything that depends on private data. ``space``: lists to pick from, each independently and uniformly, or a
    function of a generator. K, the losers and all ties are decided by the operating system's generator.
    Guarantee: the plan's, under the conditions of ``select.py``. The time it takes tells K, so it must not leave.
    Errors: whatever ``trial`` raises (the search stays charged), BudgetExceeded before anything is run,
    AccountingError for another kind of generator, a score that is no number, or a ledger for another unit.
    """
    generator = random.SystemRandom() if rng is None else rng
    if not isinstance(generator, random.SystemRandom):
        raise AccountingError(
            "Expected the operating system's generator: K and the noise must be secret. Leave rng out."
        )
    if ledger.unit != plan.unit:
        raise AccountingError(f"Expected a ledger for {plan.unit}, found one for {ledger.unit}.")
    with ledger.run(text("name", name), plan.select) as run:
        run.reserve()  # the whole search, before the first trial
        best: tuple[tuple[float, float], Winner[Output]] | None = None
        for _ in range(draw_trials(plan.select, generator)):
            params = _drawn(space, generator)
            score, output = trial(params, plan.sigma)
            score = _released(real("score", score), plan.score, generator)
            rank = (score, generator.random())  # ties broken by independent randomness
            if best is None or rank > best[0]:
                best = rank, Winner(params, score, output)
        run.step()
    return None if best is None else best[1]


def draw_trials(select: Select, generator: random.SystemRandom) -> int:
    """K from the distribution of ``select``, by walking its distribution function."""
    left = generator.random()
    if select.dist == "poisson":
        k, mass = 0, math.exp(-select.mean)
        if mass == 0:
            raise AccountingError(
                f"Expected a Poisson mean of at most 700, found {select.mean:g}. Choose a smaller one."
            )
        while left >= mass and (k < select.mean or mass > _NEVER):
            left -= mass
            k += 1
            mass *= select.mean / k
        return k
    assert select.shape is not None  # all but Poisson have one
    g, eta = gamma(select), select.shape
    if g == 1:
        return 1
    # Pr[1] = (1 − γ)·η/(γ^(−η) − 1), or (1 − γ)/ln(1/γ) for η = 0; then Pr[k + 1]/Pr[k] = (1 − γ)(k + η)/(k + 1).
    k, mass = 1, (1 - g) * (eta / math.expm1(-eta * math.log(g)) if eta else -1 / math.log(g))
    while left >= mass and mass > _NEVER:
        left -= mass
        mass *= (1 - g) * (k + eta) / (k + 1)
        k += 1
    return k


def _drawn(space: Space, generator: random.Random) -> Any:
    if callable(space):
        return space(generator)
    return {name: values[generator.randrange(integer(name, len(values), minimum=1))] for name, values in space.items()}


def _released(score: float, kind: Literal["public"] | NoisyCount, generator: random.Random) -> float:
    if kind == "public":
        return score
    return round((score + generator.gauss(0.0, kind.sigma)) / _SCORE_GRID) * _SCORE_GRID

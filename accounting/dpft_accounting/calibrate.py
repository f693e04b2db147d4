"""From a target, ε or attack risk, to the noise, the number of steps or the sampling rate that stays within it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from . import analytic
from ._check import real
from .accountants import PRV_DELTA, Method, epsilon_of
from .bound import Bound, round_up
from .budget import Budget
from .compose import Composition, compose
from .errors import AccountingError, Unsupported
from .mechanisms import Mechanism, PoissonGaussian
from .risk import Risk, risk_of
from .search import search
from .steps import composition_variance
from .units import Unit, check_delta

Vary = Literal["noise", "steps", "rate"]

_DIGITS = 6
_EXACT = 1e-9  # the closed form costs nothing, so it is followed to the last digit
_MOST_STEPS = 10**9
# With less noise a sampled unit is simply published; where δ allows even that, there is no least σ to find.
_LEAST_SAMPLED_SIGMA = 0.05


@dataclass(frozen=True)
class Calibration:
    """``value`` is what was searched; ``bound`` the ε, advantage or TPR at exactly that value."""

    value: float
    bound: Bound


class _Kind(NamedTuple):
    """How a search value is rounded towards the private side, whether loss grows with it, and where to look."""

    snap: Callable[[float], float]
    slope: Literal[-1, 1]
    low: float
    high: float


def calibrate(
    make: Callable[[float], Mechanism],
    unit: Unit,
    target: Budget | Risk,
    *,
    vary: Vary = "noise",
    rtol: float = 1e-3,
) -> Calibration:
    """The value at which ``make(value)`` uses the target up and does not pass it.

    ``vary`` says what ``make`` takes: "noise", the least σ, six digits rounded up; "steps", the most whole steps up
    to 10⁹; "rate", the largest sampling rate up to 1, six digits rounded down. ``make`` must be monotone in it.
    Guarantee: ``bound.upper`` is at most the target, evaluated at the value returned and never extrapolated, and
    within ``rtol`` of it (in ε, or in the μ of the Gaussian of equal risk) where the values are fine enough.
    Anything sampled gets σ of at least 0.05. Call ``certify`` once on the result before training.
    Errors: AccountingError for a meaningless target; Unsupported if no value reaches it, as when one step of the
    smallest kind is already too much.
    """
    if vary not in get_args(Vary):
        raise AccountingError(f"Expected vary to be one of {get_args(Vary)}, found {vary!r:.60}.")
    if not 0 < real("rtol", rtol) <= 0.1:
        raise AccountingError(f"Expected rtol above 0 and at most 0.1, found {rtol!r}.")
    if isinstance(target, Budget):
        check_delta(target.delta, unit)

    def compositions(value: float) -> tuple[Composition, ...]:
        return compose([make(value)], unit)

    sampled = vary == "rate" or any(composition.parts for composition in compositions(1.0))
    kind = _kind(vary, sampled=sampled)

    def at(value: float) -> Bound:
        if isinstance(target, Risk):
            return risk_of(target, compositions(value))
        return epsilon_of(compositions(value), target.delta, rtol=rtol)

    mu = target.mu if isinstance(target, Risk) else analytic.mu_of(target.epsilon, target.delta)
    start = _start(lambda value: max(map(composition_variance, compositions(value))), mu, kind)
    scale = target.mu_at if isinstance(target, Risk) else float
    limit = mu if isinstance(target, Risk) else target.epsilon
    closeness = rtol if sampled else _EXACT
    found = search(at, start, limit, scale, rtol=closeness, slope=kind.slope, snap=kind.snap)
    return Calibration(found.value, found.bound)


def noise_multiplier(
    epsilon: float, delta: float, q: float, steps: int, unit: Unit, *, rtol: float = 1e-3
) -> Calibration:
    """Least σ, to six digits rounded up, at which ``steps`` Poisson steps at rate ``q`` stay within (ε, δ).

    ``calibrate`` for the common case. Full batches (q = 1) are solved in closed form; no steps need no noise.
    """
    budget = Budget(epsilon, check_delta(delta, unit))
    if PoissonGaussian(q, 0.0, steps).steps == 0:
        return Calibration(0.0, Bound(0.0, 0.0, "analytic", {}))
    return calibrate(lambda sigma: PoissonGaussian(q, sigma, steps), unit, budget, rtol=rtol)


def max_steps(epsilon: float, delta: float, q: float, sigma: float, unit: Unit) -> int:
    """Most Poisson steps at rate ``q`` and noise ``sigma`` that stay within (ε, δ), up to 10⁹; 0 if none does.

    Guarantee: ``epsilon()`` of that many steps is at most ``epsilon``, and either it is within 0.1 % of it or
    one step more would exceed it. Errors: AccountingError for a meaningless target.
    """
    budget = Budget(epsilon, check_delta(delta, unit))
    return steps_within(PoissonGaussian(q, sigma, 1).with_steps, unit, budget)


def max_sample_rate(epsilon: float, delta: float, sigma: float, steps: int, unit: Unit) -> Calibration:
    """Largest Poisson rate at which ``steps`` steps with noise ``sigma`` stay within (ε, δ); times n, the batch."""
    budget = Budget(epsilon, check_delta(delta, unit))
    return calibrate(lambda q: PoissonGaussian(q, sigma, steps), unit, budget, vary="rate")


def steps_within(make: Callable[[int], Mechanism], unit: Unit, budget: Budget) -> int:
    """Most steps up to 10⁹ at which ``make(steps)`` fits in ``budget``; 0 if not even one does."""
    if epsilon_of(compose([make(1)], unit), budget.delta).upper > budget.epsilon:
        return 0
    return int(calibrate(lambda steps: make(int(steps)), unit, budget, vary="steps").value)


def fits(mechanisms: Sequence[Mechanism], unit: Unit, budget: Budget) -> bool:
    """Whether all of ``mechanisms`` together stay within ``budget`` by any accountant that is sound there.

    Every number that ``certify`` publishes is one of these, so a plan always fits its own certificate.
    """
    compositions = compose(mechanisms, unit)
    # Cheapest first; a finer PLD and the others are asked only before a no.
    looks: list[tuple[Method, float]] = [("auto", 1e-3), ("auto", 1e-4), ("rdp", 1e-3)]
    if budget.delta >= PRV_DELTA:
        looks.append(("prv", 1e-3))
    return any(_upper(compositions, budget.delta, method, rtol) <= budget.epsilon for method, rtol in looks)


def _upper(compositions: Sequence[Composition], delta: float, method: Method, rtol: float) -> float:
    try:
        return epsilon_of(compositions, delta, method, rtol).upper
    except Unsupported:
        return math.inf


def _kind(vary: Vary, *, sampled: bool) -> _Kind:
    if vary == "steps":
        return _Kind(lambda value: float(min(max(math.floor(value), 1), _MOST_STEPS)), 1, 1.0, float(_MOST_STEPS))
    if vary == "rate":
        return _Kind(lambda value: min(1.0, _round_down(max(value, 1e-12))), 1, 1e-12, 1.0)
    least = _LEAST_SAMPLED_SIGMA if sampled else 0.0
    return _Kind(lambda value: round_up(max(value, least), _DIGITS), -1, max(least, 1e-6), 1e7)


def _round_down(value: float) -> float:
    above = round_up(value, _DIGITS)
    step = 10.0 ** (math.floor(math.log10(value)) - _DIGITS + 1)
    return above if above <= value else round_up(max(above - step, step), _DIGITS)


def _start(variance: Callable[[float], float], mu: float, kind: _Kind) -> float:
    """Where the central limit has the Gaussian μ of the target, by bisection in the logarithm; costs nothing."""
    low, high = math.log(kind.low), math.log(kind.high)
    for _ in range(50):
        middle = (low + high) / 2
        too_much = variance(kind.snap(math.exp(middle))) > mu * mu
        if too_much == (kind.slope == 1):
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)

"""From a target ε to the noise, or the number of steps, that stays within it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from . import analytic
from .accountants import PRV_DELTA, Method, epsilon_of
from .bound import Bound, round_up
from .budget import Budget
from .compose import Composition, compose
from .errors import Unsupported
from .mechanisms import Mechanism, PoissonGaussian
from .search import search
from .units import Unit, check_delta

_DIGITS = 6
_MOST_STEPS = 10**9
# With less noise a sampled unit is simply published; where δ allows even that, there is no least σ to find.
_LEAST_POISSON_SIGMA = 0.05


@dataclass(frozen=True)
class Calibration:
    """``value`` is the noise multiplier σ (noise std / clip norm), ``bound`` the ε at exactly that σ."""

    value: float
    bound: Bound


def noise_multiplier(
    epsilon: float, delta: float, q: float, steps: int, unit: Unit, *, rtol: float = 1e-3
) -> Calibration:
    """Least σ, to six digits rounded up, at which ``steps`` Poisson steps at rate ``q`` stay within (ε, δ).

    Guarantee: ``bound.upper`` <= ``epsilon``, and at least ``epsilon``·(1 − rtol); ``bound`` is exactly what
    ``epsilon()`` reports for this mechanism. Call ``certify`` once on the result before training.
    Full batches (q = 1) are solved in closed form. Steps = 0 needs no noise. Poisson batches get at least
    0.05, and may then stay further below ``epsilon``.
    Errors: AccountingError for a meaningless target; Unsupported if no σ can be found.
    """
    target = Budget(epsilon, check_delta(delta, unit)).epsilon
    mechanism = PoissonGaussian(q, 0.0, steps)

    def at(sigma: float) -> Bound:
        return epsilon_of(compose([PoissonGaussian(q, sigma, steps)], unit), delta, rtol=rtol)

    if mechanism.steps == 0:
        return Calibration(0.0, at(0.0))
    mu = analytic.mu_of(target, delta) / unit.sensitivity
    # Exact for full batches, up to rounding; the central limit, slightly too little noise, for Poisson ones.
    start = math.sqrt(steps) / mu if q == 1 else math.log1p((mu / q) * (mu / q) / steps) ** -0.5
    least = 0.0 if q == 1 else _LEAST_POISSON_SIGMA
    found = search(at, start, target, rtol=rtol, slope=-1, snap=lambda sigma: round_up(max(sigma, least), _DIGITS))
    return Calibration(found.value, found.bound)


def max_steps(epsilon: float, delta: float, q: float, sigma: float, unit: Unit) -> int:
    """Most Poisson steps at rate ``q`` and noise ``sigma`` that stay within (ε, δ), up to 10⁹.

    Guarantee: ``epsilon()`` of that many steps is at most ``epsilon``, and either it is within 0.1 % of it or
    one step more would exceed it. 0 if not even one step fits. Errors: AccountingError for a meaningless
    target.
    """
    budget = Budget(epsilon, check_delta(delta, unit))
    return steps_within(PoissonGaussian(q, sigma, 1), (), unit, budget)


def steps_within(mechanism: Mechanism, others: Sequence[Mechanism], unit: Unit, budget: Budget) -> int:
    """Most steps of ``mechanism`` (its own number is ignored) that fit in ``budget`` after ``others``."""

    def at(steps: float) -> Bound:
        return epsilon_of(compose([*others, mechanism.with_steps(int(steps))], unit), budget.delta)

    def whole(steps: float) -> float:
        return float(min(max(math.floor(steps), 1), _MOST_STEPS))

    if at(1).upper > budget.epsilon:
        return 0
    found = search(at, _first_guess(mechanism, unit, budget), budget.epsilon, rtol=1e-3, slope=1, snap=whole)
    return int(found.value)


def fits(mechanisms: Sequence[Mechanism], unit: Unit, budget: Budget) -> bool:
    """Whether all of ``mechanisms`` together stay within ``budget`` by any accountant that is sound there.

    Every number that ``certify`` publishes is one of these, so a plan always fits its own certificate.
    """
    composition = compose(mechanisms, unit)
    # Cheapest first; a finer PLD and the others are asked only before a no.
    looks: list[tuple[Method, float]] = [("auto", 1e-3), ("auto", 1e-4), ("rdp", 1e-3)]
    if budget.delta >= PRV_DELTA:
        looks.append(("prv", 1e-3))
    return any(_upper(composition, budget.delta, method, rtol) <= budget.epsilon for method, rtol in looks)


def _upper(composition: Composition, delta: float, method: Method, rtol: float) -> float:
    try:
        return epsilon_of(composition, delta, method, rtol).upper
    except Unsupported:
        return math.inf


def _first_guess(mechanism: Mechanism, unit: Unit, budget: Budget) -> float:
    """Steps at which the central limit of ``mechanism`` alone has the Gaussian μ of the budget."""
    q = mechanism.q if isinstance(mechanism, PoissonGaussian) else 1.0
    mu = analytic.mu_of(budget.epsilon, budget.delta) / unit.sensitivity
    precision = (1 / mechanism.sigma) * (1 / mechanism.sigma)
    mu_step_squared = precision if q == 1 else q * q * math.expm1(min(precision, 700.0))
    return max(1.0, min(mu * mu / max(mu_step_squared, 1e-18), float(_MOST_STEPS)))

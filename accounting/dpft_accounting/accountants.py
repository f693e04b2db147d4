"""ε from δ and δ from ε, by a chosen accountant or by the one that is right for the case."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from . import analytic, pld, prv, rdp
from ._check import real
from .bound import Bound
from .combined import EpsDelta
from .compose import Chosen, Composition, compose
from .errors import AccountingError, Unsupported
from .mechanisms import Mechanism
from .units import Unit, check_delta

Method = Literal["auto", "pld", "prv", "rdp", "analytic"]

PRV_DELTA = 1e-12  # below it even long double runs out of digits; the Rényi bound is analytic
FLOAT_NOISE = "delta below 1e-9: float64 noise, a check and no guarantee"


def epsilon(mechanism: Mechanism, unit: Unit, delta: float, *, method: Method = "auto", rtol: float = 1e-3) -> Bound:
    """ε of ``mechanism`` at ``delta`` for one ``unit``.

    ``auto``: closed form for full batches; otherwise PLD for δ >= 1e-9, PRV down to 1e-12, RDP below.
    ``rtol`` is how far PLD may lie above the truth, relative to it. Steps = 0 gives 0, sigma = 0 gives
    infinity.
    Errors: AccountingError for a meaningless δ, Unsupported where the method has no sound answer.
    """
    return epsilon_of(compose([mechanism], unit), check_delta(delta, unit), method, rtol)


def delta(mechanism: Mechanism, unit: Unit, epsilon: float, *, method: Method = "auto", rtol: float = 1e-3) -> Bound:
    """δ of ``mechanism`` at ``epsilon`` >= 0: the privacy profile, larger of both directions.

    Methods and errors as for ``epsilon``; ``auto`` moves to PRV and RDP when δ itself turns out below 1e-9
    and 1e-12.
    """
    return delta_of(compose([mechanism], unit), real("epsilon", epsilon, minimum=0), method, rtol)


def epsilon_of(compositions: Sequence[Composition], delta: float, method: Method = "auto", rtol: float = 1e-3) -> Bound:
    """``epsilon`` of the worst composition; ``delta`` has been checked."""
    by_method: dict[str, Callable[[Composition], Bound]] = {
        "pld": lambda c: pld_epsilon(c, delta, rtol),
        "prv": lambda c: prv_epsilon(c, delta),
        "rdp": lambda c: rdp.epsilon(c, delta),
        "analytic": lambda c: analytic.epsilon(c, delta),
        "auto": lambda c: _auto_epsilon(c, delta, rtol),
    }
    return _worst(compositions, _chosen(by_method, method, rtol), math.inf)


def delta_of(compositions: Sequence[Composition], epsilon: float, method: Method = "auto", rtol: float = 1e-3) -> Bound:
    """``delta`` of the worst composition; ``epsilon`` has been checked."""
    by_method: dict[str, Callable[[Composition], Bound]] = {
        "pld": lambda c: pld.delta(c, epsilon, rtol),
        "prv": lambda c: prv.delta(c, epsilon, rdp.delta(c, epsilon).upper),
        "rdp": lambda c: rdp.delta(c, epsilon),
        "analytic": lambda c: analytic.delta(c, epsilon),
        "auto": lambda c: _auto_delta(c, epsilon, rtol),
    }
    return _worst(compositions, _chosen(by_method, method, rtol), 1.0)


def worst(bounds: Iterable[Bound]) -> Bound:
    """The bound on the largest of several unknown numbers."""
    found = sorted(bounds, key=lambda bound: bound.upper)
    return replace(found[-1], lower=max(bound.lower for bound in found))


def has_selection(composition: Composition) -> bool:
    """Whether PLD and RDP rest on different theory, so that neither has to be the lower one."""
    return any(isinstance(part.step, Chosen) for part in composition.parts)


def lower_of_two(bound: Bound, composition: Composition, by_rdp: Callable[[], Bound]) -> Bound:
    """PLD's bound, or RDP's where a selection makes that the lower of two sound ones."""
    if not has_selection(composition):
        return bound
    try:
        return min(bound, by_rdp(), key=lambda found: found.upper)
    except Unsupported:
        return bound


def pld_epsilon(composition: Composition, delta: float, rtol: float) -> Bound:
    """PLD's ε, flagged where float64 noise can matter."""
    bound = pld.epsilon(composition, delta, rtol)
    return bound if delta >= pld.SOUND_DELTA else _flagged(bound, FLOAT_NOISE)


def prv_epsilon(composition: Composition, delta: float) -> Bound:
    """PRV's bounds on ε, their width set by PLD at a δ where PLD is sound."""
    prv.check(composition)
    rough = pld.epsilon(composition, max(delta, pld.SOUND_DELTA))
    return prv.epsilon(composition, delta, rough.upper)


def _worst(
    compositions: Sequence[Composition], compute: Callable[[Composition], Bound], nothing_hidden: float
) -> Bound:
    bounds = []
    for composition in compositions:
        if composition.is_infinite:
            return Bound(nothing_hidden, nothing_hidden, "analytic", {})
        bounds.append(Bound(0.0, 0.0, "analytic", {}) if composition.is_empty else compute(composition))
    return worst(bounds)


def _auto_epsilon(composition: Composition, delta: float, rtol: float) -> Bound:
    if not composition.parts:
        return analytic.epsilon(composition, delta)
    stated = _only_stated(composition)
    if stated is not None and delta >= stated.delta:
        return Bound(0.0, stated.epsilon, "stated", {})
    try:
        if delta < PRV_DELTA:
            return rdp.epsilon(composition, delta)
        if delta >= pld.SOUND_DELTA:
            bound = pld.epsilon(composition, delta, rtol)
            return lower_of_two(bound, composition, lambda: rdp.epsilon(composition, delta))
        if composition.poisson is not None:
            return prv_epsilon(composition, delta)
    except Unsupported as reason:
        return _fallen_back(lambda: rdp.epsilon(composition, delta), reason)
    return _fallen_back(lambda: rdp.epsilon(composition, delta), _too_small(delta))


def _auto_delta(composition: Composition, epsilon: float, rtol: float) -> Bound:
    if not composition.parts:
        return analytic.delta(composition, epsilon)
    stated = _only_stated(composition)
    if stated is not None and epsilon >= stated.epsilon:
        return Bound(0.0, stated.delta, "stated", {})
    try:
        by_rdp = rdp.delta(composition, epsilon)
    except Unsupported:
        return _raised(pld.delta(composition, epsilon, rtol))
    if composition.poisson is None:  # no PRV: PLD down to 1e-9, and never above RDP
        return min(_raised(pld.delta(composition, epsilon, rtol)), by_rdp, key=lambda found: found.upper)
    if by_rdp.upper < PRV_DELTA:
        return by_rdp
    try:
        bound = pld.delta(composition, epsilon, rtol)
        if bound.upper < pld.SOUND_DELTA:
            bound = prv.delta(composition, epsilon, by_rdp.upper)
    except Unsupported as reason:
        return _flagged(by_rdp, f"fell back to rdp: {reason}")
    return bound if PRV_DELTA <= bound.upper <= by_rdp.upper else by_rdp


def _only_stated(composition: Composition) -> EpsDelta | None:
    """The one stated guarantee that the composition consists of: nothing to compute where it says enough."""
    if composition.mu or len(composition.parts) != 1 or composition.parts[0].steps != 1:
        return None
    step = composition.parts[0].step
    return step if isinstance(step, EpsDelta) else None


def _raised(bound: Bound) -> Bound:
    if bound.upper >= pld.SOUND_DELTA:
        return bound
    return replace(bound, upper=pld.SOUND_DELTA, flags=("below 1e-9, raised to it: no sharper bound is sound",))


def _too_small(delta: float) -> Unsupported:
    return Unsupported(
        f"A sound answer exists for delta >= {pld.SOUND_DELTA:g} only here, found {delta:g}. Choose a larger delta."
    )


def _fallen_back(by_rdp: Callable[[], Bound], reason: Unsupported) -> Bound:
    try:
        return _flagged(by_rdp(), f"fell back to rdp: {reason}")
    except Unsupported:
        raise reason from None


def _chosen(
    by_method: dict[str, Callable[[Composition], Bound]], method: Method, rtol: float
) -> Callable[[Composition], Bound]:
    if method not in by_method:
        raise Unsupported(f"Expected method to be one of {get_args(Method)}, found {method!r}.")
    if not 0 < real("rtol", rtol) <= 0.1:
        raise AccountingError(f"Expected rtol above 0 and at most 0.1, found {rtol!r}.")
    return by_method[method]


def _flagged(bound: Bound, flag: str) -> Bound:
    return replace(bound, flags=(*bound.flags, flag))

"""ε from δ and δ from ε, by a chosen accountant or by the one that is right for the case."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

from . import analytic, pld, prv, rdp
from ._check import real
from .bound import Bound
from .compose import Composition, compose
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
    composition = compose([mechanism], unit)
    real("epsilon", epsilon, minimum=0)
    by_method: dict[str, Callable[[], Bound]] = {
        "pld": lambda: pld.delta(composition, epsilon, rtol),
        "prv": lambda: prv.delta(composition, epsilon, rdp.delta(composition, epsilon).upper),
        "rdp": lambda: rdp.delta(composition, epsilon),
        "analytic": lambda: analytic.delta(composition, epsilon),
        "auto": lambda: _auto_delta(composition, epsilon, rtol),
    }
    compute = _chosen(by_method, method, rtol)
    if composition.is_infinite:
        return Bound(1.0, 1.0, "analytic", {})
    return Bound(0.0, 0.0, "analytic", {}) if composition.is_empty else compute()


def epsilon_of(composition: Composition, delta: float, method: Method = "auto", rtol: float = 1e-3) -> Bound:
    """``epsilon`` of a composition; ``delta`` has been checked."""
    by_method: dict[str, Callable[[], Bound]] = {
        "pld": lambda: pld_epsilon(composition, delta, rtol),
        "prv": lambda: prv_epsilon(composition, delta),
        "rdp": lambda: rdp.epsilon(composition, delta),
        "analytic": lambda: analytic.epsilon(composition, delta),
        "auto": lambda: _auto_epsilon(composition, delta, rtol),
    }
    compute = _chosen(by_method, method, rtol)
    if composition.is_infinite:
        return Bound(math.inf, math.inf, "analytic", {})
    return Bound(0.0, 0.0, "analytic", {}) if composition.is_empty else compute()


def pld_epsilon(composition: Composition, delta: float, rtol: float) -> Bound:
    """PLD's ε, flagged where float64 noise can matter."""
    bound = pld.epsilon(composition, delta, rtol)
    return bound if delta >= pld.SOUND_DELTA else _flagged(bound, FLOAT_NOISE)


def prv_epsilon(composition: Composition, delta: float) -> Bound:
    """PRV's bounds on ε, their width set by PLD at a δ where PLD is sound."""
    rough = pld.epsilon(composition, max(delta, pld.SOUND_DELTA))
    return prv.epsilon(composition, delta, rough.upper)


def _auto_epsilon(composition: Composition, delta: float, rtol: float) -> Bound:
    if not composition.poisson:
        return analytic.epsilon(composition, delta)
    if composition.adjacency == "replace":
        if delta < pld.SOUND_DELTA:
            raise Unsupported(
                f"Poisson batches under replace have a sound answer for delta >= {pld.SOUND_DELTA:g} only, "
                f"found {delta:g}. Choose a larger delta, or zero_out or add_remove."
            )
        return pld.epsilon(composition, delta, rtol)
    if delta < PRV_DELTA:
        return rdp.epsilon(composition, delta)
    try:
        if delta < pld.SOUND_DELTA:
            return prv_epsilon(composition, delta)
        return pld.epsilon(composition, delta, rtol)
    except Unsupported as reason:
        return _flagged(rdp.epsilon(composition, delta), f"fell back to rdp: {reason}")


def _auto_delta(composition: Composition, epsilon: float, rtol: float) -> Bound:
    if not composition.poisson:
        return analytic.delta(composition, epsilon)
    if composition.adjacency == "replace":
        bound = pld.delta(composition, epsilon, rtol)
        if bound.upper >= pld.SOUND_DELTA:
            return bound
        return replace(bound, upper=pld.SOUND_DELTA, flags=("below 1e-9, raised to it: no sharper bound is sound",))
    analytic_upper = rdp.delta(composition, epsilon)
    if analytic_upper.upper < PRV_DELTA:
        return analytic_upper
    try:
        bound = pld.delta(composition, epsilon, rtol)
        if bound.upper < pld.SOUND_DELTA:
            bound = prv.delta(composition, epsilon, analytic_upper.upper)
    except Unsupported as reason:
        return _flagged(analytic_upper, f"fell back to rdp: {reason}")
    return bound if PRV_DELTA <= bound.upper <= analytic_upper.upper else analytic_upper


def _chosen(by_method: dict[str, Callable[[], Bound]], method: Method, rtol: float) -> Callable[[], Bound]:
    if method not in by_method:
        raise Unsupported(f"Expected method to be one of {get_args(Method)}, found {method!r}.")
    if not 0 < real("rtol", rtol) <= 0.1:
        raise AccountingError(f"Expected rtol above 0 and at most 0.1, found {rtol!r}.")
    return by_method[method]


def _flagged(bound: Bound, flag: str) -> Bound:
    return replace(bound, flags=(*bound.flags, flag))

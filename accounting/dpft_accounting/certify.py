"""One number to publish, after every accountant has been heard."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from . import pld, pld_peer, prv, rdp
from .accountants import FLOAT_NOISE, PRV_DELTA, epsilon_of, has_selection, pld_epsilon, prv_epsilon
from .bound import Bound, round_up
from .compose import Composition, compose
from .errors import AccountantsDisagree, Unsupported
from .mechanisms import Mechanism
from .units import Unit, check_delta

_DIGITS = 9  # of the published ε, rounded up
_RTOL = 1e-3
_AGREEMENT = 0.02  # of two implementations of one theory, one of them on a coarser grid
# PLD and RDP agree to the last digits where both are exact; rounding must not count as disagreement.
_ROUNDING = 1 + 1e-6


@dataclass(frozen=True)
class Certificate:
    """The ε of one mechanism, as ``bound``, and every accountant's own answer in ``rows``.

    ``bound.upper`` is the number to publish, ``bound.flags`` what must be said beside it. A row of an
    accountant that could not be run has upper = infinity and the reason as its flag.
    """

    mechanism: Mechanism
    unit: Unit
    delta: float
    bound: Bound
    rows: tuple[Bound, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, complete enough to recompute the number."""
        return {
            "mechanism": self.mechanism.to_dict(),
            "unit": self.unit.to_dict(),
            "delta": self.delta,
            "bound": self.bound.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
        }


def certify(mechanism: Mechanism, unit: Unit, delta: float) -> Certificate:
    """ε of ``mechanism`` at ``delta``, cross-checked: in a second, or up to a minute for extreme settings.

    Full batch: the closed form. Poisson: PLD if it lies between the bounds of PRV and below RDP; if it
    exceeds only PRV's upper bound its grid is refined first; else PRV's upper bound, or RDP if that is lower,
    with a flag. For δ < 1e-9, where float64 noise matters, PRV's upper bound or RDP; for δ < 1e-12, RDP.
    Whatever PRV does not know (Poisson under replace, truncation, user level, selection, stated guarantees): PLD,
    beside dp-accounting's own PLD, below RDP where there is a Rényi bound; the flags say what was not checked.
    Errors: AccountantsDisagree if no accountant can be believed; Unsupported where none is sound.
    """
    delta = check_delta(delta, unit)
    found = [_certified(composition, delta) for composition in compose([mechanism], unit)]
    bound, rows = max(found, key=lambda one: one[0].upper)
    if len(found) > 1:
        lower = max(one[0].lower for one in found)
        bound = replace(bound, lower=lower, flags=(*bound.flags, f"the worst of {len(found)} parts of the data"))
    return Certificate(mechanism, unit, delta, bound, rows)


def _certified(composition: Composition, delta: float) -> tuple[Bound, tuple[Bound, ...]]:
    if composition.is_infinite or not composition.parts:
        return _full_batch(composition, delta)
    return _other(composition, delta) if composition.poisson is None else _poisson(composition, delta)


def _full_batch(composition: Composition, delta: float) -> tuple[Bound, tuple[Bound, ...]]:
    exact = epsilon_of([composition], delta)
    if composition.is_infinite or exact.upper == 0:
        return exact, (exact,)
    rows = (
        exact,
        _row("pld", lambda: pld_epsilon(composition, delta, _RTOL)),
        _row("prv", lambda: prv.epsilon(composition, delta, exact.upper)),
        rdp.epsilon(composition, delta),
    )
    if exact.lower > min(row.upper for row in rows if FLOAT_NOISE not in row.flags) * _ROUNDING:
        raise AccountantsDisagree(f"The closed form is above another accountant's upper bound: {_listed(rows)}.")
    return _published(exact.lower, exact, rows), rows


def _other(composition: Composition, delta: float) -> tuple[Bound, tuple[Bound, ...]]:
    """What PRV does not know: PLD beside another implementation of it, and below RDP where there is one."""
    only = epsilon_of([composition], delta, rtol=_RTOL)
    pld_row = _row("pld", lambda: pld_epsilon(composition, delta, _RTOL))
    grid = pld_row.grid or _RTOL
    peer = _row("dp-accounting", lambda: pld_peer.epsilon(composition, delta, grid))
    rdp_row = _row("rdp", lambda: rdp.epsilon(composition, delta))
    rows: tuple[Bound, ...] = (pld_row, peer, rdp_row)
    flags = _second_opinion(pld_row, peer, rdp_row)
    if only.method == "stated":
        rows, flags = (only, *rows), ("a guarantee stated elsewhere, taken on trust",)
    elif only.upper > rdp_row.upper * _ROUNDING and not has_selection(composition):
        only, flags = rdp_row, (f"accountants disagree, rdp reported: {_listed((pld_row, rdp_row))}",)
    elif only.method == "pld" and math.isfinite(peer.upper) and _apart(pld_row, peer):
        only = max(only, peer, key=lambda row: row.upper)
    return _published(0.0, only, rows, *flags), rows


def _second_opinion(pld_row: Bound, peer: Bound, rdp_row: Bound) -> tuple[str, ...]:
    if math.isinf(peer.upper):
        return ("pld only, not cross-checked" if math.isinf(rdp_row.upper) else "checked against rdp only",)
    if _apart(pld_row, peer):
        return (f"accountants disagree, the larger reported: {_listed((pld_row, peer))}",)
    return ("two upper bounds agree, no lower bound",)


def _apart(one: Bound, other: Bound) -> bool:
    """Whether two pessimistic implementations differ by more than a coarser grid explains."""
    low, high = sorted((one.upper, other.upper))
    return high > low * (1 + _AGREEMENT) + _AGREEMENT


def _poisson(composition: Composition, delta: float) -> tuple[Bound, tuple[Bound, ...]]:
    rdp_row = rdp.epsilon(composition, delta)
    prv_row = _row("prv", lambda: prv_epsilon(composition, delta))
    pld_row = _row("pld", lambda: pld_epsilon(composition, delta, _RTOL))
    if prv_row.upper < pld_row.upper < math.inf:
        pld_row = pld_epsilon(composition, delta, _RTOL / 10)
    rows = (pld_row, prv_row, rdp_row)
    chosen, flags = decide(pld_row, prv_row, rdp_row, delta)
    return _published(prv_row.lower, chosen, rows, *flags), rows


def decide(pld_row: Bound, prv_row: Bound, rdp_row: Bound, delta: float) -> tuple[Bound, tuple[str, ...]]:
    """Which row to publish for Poisson batches, and what to say about it. Errors: AccountantsDisagree."""
    limit = rdp_row.upper * _ROUNDING
    if prv_row.lower > limit:
        raise AccountantsDisagree(
            "prv's lower bound is above rdp's upper bound, so one of them is wrong: "
            f"{_listed((prv_row, rdp_row))}. Report this setting, and choose another."
        )
    fallback = prv_row if prv_row.upper <= rdp_row.upper else rdp_row
    if delta < PRV_DELTA:
        return rdp_row, ("delta below 1e-12: rdp",)
    if delta < pld.SOUND_DELTA:
        return fallback, (f"delta below 1e-9: {fallback.method}",)
    if math.isinf(prv_row.upper) and math.isinf(pld_row.upper):
        return rdp_row, ("only rdp could be run",)
    if math.isinf(prv_row.upper) and pld_row.upper <= limit:
        # Without PRV nothing bounds PLD from below; at such δ its error is upward all the same.
        return pld_row, ("not cross-checked by prv",)
    if prv_row.lower <= pld_row.upper <= prv_row.upper and pld_row.upper <= limit:
        return pld_row, ()
    return fallback, (f"accountants disagree, {fallback.method} reported: {_listed((pld_row, prv_row, rdp_row))}",)


def _row(method: str, compute: Callable[[], Bound]) -> Bound:
    try:
        return compute()
    except Unsupported as reason:
        return Bound(0.0, math.inf, method, {}, flags=(f"not run: {reason}",))


def _published(lower: float, chosen: Bound, rows: tuple[Bound, ...], *flags: str) -> Bound:
    used = {package: number for row in rows for package, number in row.versions.items()}
    upper = round_up(chosen.upper, _DIGITS)
    return Bound(min(lower, upper), upper, chosen.method, used, chosen.grid, (*chosen.flags, *flags))


def _listed(rows: tuple[Bound, ...]) -> str:
    return "; ".join(f"{row.method} [{row.lower:.6g}, {row.upper:.6g}]" for row in rows)

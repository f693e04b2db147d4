"""An ε (or a δ) as accountants know it: between two numbers, by a named method and version."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from ._check import exact_keys, real
from .errors import AccountingError


def round_up(value: float, digits: int) -> float:
    """The smallest decimal number of ``digits`` significant digits that is not below ``value`` (>= 0)."""
    if value == 0 or math.isinf(value):
        return value
    exact = Decimal(repr(value))  # the digits that print, or 0.7 would become 0.700001
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=ROUND_CEILING))


@dataclass(frozen=True)
class Bound:
    """The truth lies in [``lower``, ``upper``]; **the number to print is** ``upper``.

    ``lower`` is 0 where the method claims no lower bound (PLD, RDP). ``method`` is the accountant,
    ``versions`` the libraries behind it, ``grid`` the width of its grid (None if it has none), ``flags`` what
    a reader must know. ``str`` gives ``upper`` to five digits, rounded up. Errors: AccountingError unless 0
    <= lower <= upper.
    """

    lower: float
    upper: float
    method: str
    versions: Mapping[str, str]
    grid: float | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        real("lower", self.lower, minimum=0, infinite=True)
        real("upper", self.upper, minimum=self.lower, infinite=True)

    def __str__(self) -> str:
        return f"{round_up(self.upper, 5):.5g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form; infinity becomes the text "inf", which JSON can hold."""
        return {
            "lower": _to_json(self.lower),
            "upper": _to_json(self.upper),
            "method": self.method,
            "versions": dict(self.versions),
            "grid": self.grid,
            "flags": list(self.flags),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Bound:
        """The bound that ``to_dict`` described; AccountingError for anything else."""
        checked = exact_keys("bound", value, {"lower", "upper", "method", "versions", "grid", "flags"})
        if not (
            isinstance(checked["method"], str)
            and isinstance(checked["versions"], Mapping)
            and isinstance(checked["flags"], list | tuple)
        ):
            raise AccountingError("Expected a bound with method as text, versions as a mapping and flags as a list.")
        return cls(
            _from_json(checked["lower"]),
            _from_json(checked["upper"]),
            checked["method"],
            dict(checked["versions"]),
            None if checked["grid"] is None else real("grid", checked["grid"], minimum=0),
            tuple(checked["flags"]),
        )


def _to_json(value: float) -> float | str:
    return "inf" if math.isinf(value) else value


def _from_json(value: object) -> float:
    return math.inf if value == "inf" else real("bound", value, minimum=0)

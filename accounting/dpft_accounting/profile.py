"""The privacy profile of a mechanism: ε for δ, δ for ε, and what attacks can reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ._check import real
from .accountants import Method, delta_of, epsilon_of
from .bound import Bound
from .compose import Composition, compose
from .errors import AccountingError
from .mechanisms import Mechanism
from .tradeoff import curve_of, power
from .units import Unit, check_delta

if TYPE_CHECKING:
    from .tradeoff import Curve

_DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Profile:
    """Use ``profile``. Everything is a bound on what holds for every neighbouring pair and any attacker.

    ``epsilon`` and ``delta`` use ``method``; the attack figures are upper bounds from the closed form or PLD,
    whatever the method, and do not depend on a choice of δ.
    """

    mechanism: Mechanism
    unit: Unit
    method: Method
    rtol: float
    compositions: Sequence[Composition] = field(repr=False)

    def epsilon(self, delta: float) -> Bound:
        """ε at ``delta``. Errors as for the function ``epsilon``."""
        return epsilon_of(self.compositions, check_delta(delta, self.unit), self.method, self.rtol)

    def delta(self, epsilon: float) -> Bound:
        """δ at ``epsilon`` >= 0. Errors as for the function ``delta``."""
        return delta_of(self.compositions, real("epsilon", epsilon, minimum=0), self.method, self.rtol)

    def tpr(self, fpr: float) -> float:
        """Most that a membership attack with this false-positive rate can reach; 1 − β(fpr)."""
        return power(self._curve, _probability("fpr", fpr))

    def advantage(self) -> float:
        """Largest TPR − FPR of any membership attack: δ(0)."""
        import numpy as np

        return float(self._curve(np.zeros(1))[0])

    def reconstruction(self, baseline: float) -> float:
        """Most that reconstruction or attribute inference can succeed with, ``baseline`` without the unit's data.

        ``baseline``: success probability of the best guess from everything but this unit's data, for the prior
        in question. Bound: 1 − β(baseline) (Kulynych et al. 2025, arXiv 2507.06969).
        """
        return power(self._curve, _probability("baseline", baseline))

    def trade_off(self, rates: Sequence[float] = _RATES) -> list[tuple[float, float]]:
        """(false-positive rate, largest true-positive rate) as data."""
        return [(rate, self.tpr(rate)) for rate in rates]

    def to_json(self) -> dict[str, Any]:
        """JSON form: mechanism, unit, ε at several δ, attack risk."""
        deltas = [d for d in _DELTAS if self.unit.n_public is None or d < 1 / self.unit.n_public]
        return {
            "mechanism": self.mechanism.to_dict(),
            "unit": self.unit.to_dict(),
            "method": self.method,
            "epsilon": [{"delta": d, **self.epsilon(d).to_dict()} for d in deltas],
            "advantage": self.advantage(),
            "trade_off": [{"fpr": a, "tpr": b} for a, b in self.trade_off()],
        }

    @cached_property
    def _curve(self) -> Curve:
        return curve_of(self.compositions)


def profile(mechanism: Mechanism, unit: Unit, *, method: Method = "auto", rtol: float = 1e-3) -> Profile:
    """The privacy profile of ``mechanism`` for one ``unit``. Methods and errors as for ``epsilon``."""
    return Profile(mechanism, unit, method, rtol, compose([mechanism], unit))


def _probability(name: str, value: float) -> float:
    number = real(name, value)
    if not 0 <= number <= 1:
        raise AccountingError(f"Expected {name} between 0 and 1, found {value!r}.")
    return number

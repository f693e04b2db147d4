"""The Rényi filter: a budget that may be spent adaptively, each step chosen by what earlier ones released.

At one order α, fixed before the first run, the divergences of the steps add up even when each step's mechanism
depends on all earlier outputs; going on while the sum stays below the budget's R(α) keeps (ε, δ) (Feldman & Zrnic
2021, theorem 3.1; Lécuyer 2021). The price: one order for everything, so about a tenth more noise than a plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from . import rdp
from ._check import exact_keys, real
from .bound import Bound
from .budget import Budget
from .compose import compose
from .errors import AccountingError
from .mechanisms import Mechanism
from .units import Unit


@dataclass(frozen=True)
class RenyiFilter:
    """The order α at which divergences are added. Errors: AccountingError for an order that is not one of ours."""

    order: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", real("order", self.order))
        if self.order not in rdp.ORDERS:
            raise AccountingError(f"Expected a Rényi order of the accountant's list, found {self.order!r}.")

    def limit(self, budget: Budget) -> float:
        """Largest total divergence R(α) from which (ε, δ) follows; the conversion of ``rdp.py`` solved for R."""
        return budget.epsilon - math.log1p(-1 / self.order) + self._cost_of_delta(budget.delta)

    def epsilon(self, divergence: float, delta: float) -> float:
        """ε at ``delta`` of a total divergence at this order."""
        return max(0.0, divergence + math.log1p(-1 / self.order) - self._cost_of_delta(delta)) if divergence else 0.0

    def divergence(self, mechanism: Mechanism, unit: Unit) -> float:
        """Total R(α) of ``mechanism``, for the worst part of the data. Unsupported where it has no Rényi bound."""
        index = rdp.ORDERS.index(self.order)
        compositions = compose([mechanism], unit)
        return max(math.inf if c.is_infinite else rdp.curve(c)[index] for c in compositions)

    def spent(self, mechanism: Mechanism, unit: Unit, delta: float) -> Bound:
        """Upper bound on ε at ``delta`` that also holds if ``mechanism`` was chosen step by step."""
        upper = self.epsilon(self.divergence(mechanism, unit), delta)
        return Bound(0.0, upper, "rdp filter", rdp.used(), flags=(f"one Rényi order, {self.order:g}",))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; ``from_dict`` undoes it."""
        return {"kind": "adaptive_rdp", "order": self.order}

    @classmethod
    def from_dict(cls, value: Any) -> RenyiFilter:
        """The filter that ``to_dict`` described; AccountingError for anything else."""
        checked = exact_keys("filter", value, {"kind", "order"})
        if checked["kind"] != "adaptive_rdp":
            raise AccountingError(f"Expected filter adaptive_rdp or null, found {checked['kind']!r:.60}.")
        return cls(checked["order"])

    def _cost_of_delta(self, delta: float) -> float:
        return (math.log(delta) + math.log(self.order)) / (self.order - 1)


def filter_for(budget: Budget) -> RenyiFilter:
    """The order at which ``budget`` admits the most steps of a Gaussian, whose divergence is proportional to α."""
    best = max((RenyiFilter(float(order)) for order in rdp.ORDERS), key=lambda found: found.limit(budget) / found.order)
    if best.limit(budget) <= 0:
        raise AccountingError(
            f"Expected a budget that a Rényi order can hold, found epsilon={budget.epsilon:g} at "
            f"delta={budget.delta:g}. Choose a larger one, or no filter."
        )
    return best

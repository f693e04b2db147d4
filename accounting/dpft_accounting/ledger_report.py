"""A ledger as a table: what was spent, by run and by part, and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .accountants import epsilon_of
from .bound import Bound
from .budget import Budget
from .compose import compose
from .errors import LedgerError, Unsupported
from .mechanisms import Mechanism
from .units import Unit

if TYPE_CHECKING:
    from .ledger import Ledger


@dataclass(frozen=True)
class RunRow:
    """One run. ``epsilon``: of what it is charged, as if it were alone; these do not add up."""

    name: str
    mechanism: Mechanism
    parts: tuple[str, ...]
    planned: int
    reserved: int
    committed: int
    epsilon: Bound | None


@dataclass(frozen=True)
class LedgerReport:
    """Spending on one data set at ``delta``. ``by_part`` is empty where the ledger has no parts."""

    dataset: str
    unit: Unit
    budget: Budget | None
    adaptive: bool
    delta: float
    spent: Bound
    by_part: Mapping[str, Bound]
    runs: tuple[RunRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "dataset": self.dataset,
            "unit": self.unit.to_dict(),
            "budget": self.budget.to_dict() if self.budget else None,
            "filter": "adaptive_rdp" if self.adaptive else "planned",
            "delta": self.delta,
            "spent": self.spent.to_dict(),
            "by_part": {part: bound.to_dict() for part, bound in self.by_part.items()},
            "runs": {
                run.name: {
                    "mechanism": run.mechanism.to_dict(),
                    "parts": list(run.parts),
                    "planned": run.planned,
                    "reserved": run.reserved,
                    "committed": run.committed,
                    "epsilon_alone": run.epsilon.to_dict() if run.epsilon else None,
                }
                for run in self.runs
            },
        }


def ledger_report(ledger: Ledger, delta: float | None) -> LedgerReport:
    """See ``Ledger.report``. LedgerError if neither ``delta`` nor a budget says at which δ."""
    if delta is None and ledger.budget is None:
        raise LedgerError("The ledger has no budget to take delta from. Give delta.")
    at = delta if delta is not None else ledger.budget.delta  # type: ignore[union-attr]  # one of the two is given
    rows = [
        RunRow(name, run.mech, run.parts, run.mech.planned, run.reserved, run.committed,
               _alone(run.charged[0], ledger.unit, at))
        for name, run in ledger.runs().items()
    ]  # fmt: skip
    by_part = {part: ledger.spent(at, part) for part in ledger.parts}
    return LedgerReport(
        ledger.dataset_id, ledger.unit, ledger.budget, ledger.adaptive, at, ledger.spent(at), by_part, tuple(rows)
    )


def _alone(charged: Mechanism, unit: Unit, delta: float) -> Bound | None:
    try:
        return epsilon_of(compose([charged], unit), delta)
    except Unsupported:  # below 1e-9, say; the table is still worth having
        return None

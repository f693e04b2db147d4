"""``dpft account`` and ``dpft ledger``: what has been, or would be, spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpft_accounting import Gaussian, Ledger, PoissonGaussian, Unit, certify, verify
from rich.console import Console
from rich.table import Table

from dpft.errors import InputError
from dpft.report.write import figure


def account_mechanism(
    noise_multiplier: float | None,
    sample_rate: float,
    steps: int,
    delta: float | None,
    unit: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Every accountant's epsilon of one mechanism, side by side."""
    if noise_multiplier is None or delta is None:
        raise InputError("Expected --noise-multiplier and --delta, or a ledger. Give both.")
    full = sample_rate == 1
    mechanism = Gaussian(noise_multiplier, steps) if full else PoissonGaussian(sample_rate, noise_multiplier, steps)
    found = certify(mechanism, Unit.from_dict(unit), delta)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
        return
    table = Table("accountant", "lower", "upper", "remarks", box=None, padding=(0, 2, 0, 0))
    for row in found.rows:
        lower = figure(row.lower) if row.lower else "none claimed"
        table.add_row(row.method.upper(), lower, figure(row.upper), "; ".join(row.flags))
    table.add_row("publish", figure(found.bound.lower), figure(found.bound.upper), "; ".join(found.bound.flags))
    Console().print(table)


def account_ledger(path: Path, delta: float | None, *, mechanism_too: bool, as_json: bool) -> None:
    """Epsilon that a ledger has been charged in all."""
    if mechanism_too:
        raise InputError("Expected a ledger or --noise-multiplier, found both. Give one of them.")
    ledger = Ledger.read(path)
    at = _delta(ledger, delta)
    spent = ledger.spent(at)
    if as_json:
        print(json.dumps({"delta": at, "epsilon": spent.to_dict()}, indent=2, allow_nan=False))
    else:
        remarks = "".join(f"; {flag}" for flag in spent.flags)
        print(f"epsilon {figure(spent.upper)} at delta {at:g} ({spent.method}{remarks})")


def show_ledger(path: Path, delta: float | None, *, as_json: bool) -> None:
    """Runs of a ledger with their steps, and what is spent and left."""
    ledger = Ledger.read(path)
    at = _delta(ledger, delta)
    spent = ledger.spent(at)
    runs: dict[str, dict[str, Any]] = {
        name: {"mechanism": run.mech.to_dict(), "reserved": run.reserved, "committed": run.committed}
        for name, run in ledger.runs().items()
    }
    budget = ledger.budget
    if as_json:
        value = {
            "dataset": ledger.dataset_id, "unit": ledger.unit.to_dict(), "delta": at, "spent": spent.to_dict(),
            "budget": budget.to_dict() if budget else None, "runs": runs,
        }  # fmt: skip
        print(json.dumps(value, indent=2, allow_nan=False))
        return
    console = Console()
    console.print(f"data set {ledger.dataset_id}, unit {ledger.unit.name}, {ledger.unit.adjacency}", highlight=False)
    table = Table("run", "mechanism", "reserved", "executed", box=None, padding=(0, 2, 0, 0))
    for name, run in runs.items():
        numbers = ", ".join(f"{k}={v}" for k, v in run["mechanism"].items() if k not in ("kind", "v"))
        table.add_row(name, f"{run['mechanism']['kind']}({numbers})", str(run["reserved"]), str(run["committed"]))
    console.print(table)
    left = f" of {figure(budget.epsilon)}" if budget else ""
    console.print(f"spent: epsilon {figure(spent.upper)}{left} at delta {at:g}", highlight=False)


def verify_ledger(path: Path, *, as_json: bool) -> None:
    """Check a ledger's chain; a break raises and names the line."""
    summary = verify(path)
    if as_json:
        print(json.dumps(summary.to_dict(), indent=2))
    else:
        print(f"{path}: {summary}")


def _delta(ledger: Ledger, delta: float | None) -> float:
    if delta is not None:
        return delta
    if ledger.budget is None:
        raise InputError("The ledger has no budget to take delta from. Give --delta.")
    return ledger.budget.delta

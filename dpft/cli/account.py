"""``dpft account``: what has been, or would be, spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpft_accounting import Gaussian, Ledger, PoissonGaussian, Unit, certify
from rich.console import Console
from rich.table import Table

from dpft.cli.ledger import delta_of
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
    at = delta_of(ledger, delta)
    spent = ledger.spent(at)
    if as_json:
        print(json.dumps({"delta": at, "epsilon": spent.to_dict()}, indent=2, allow_nan=False))
    else:
        remarks = "".join(f"; {flag}" for flag in spent.flags)
        print(f"epsilon {figure(spent.upper)} at delta {at:g} ({spent.method}{remarks})")

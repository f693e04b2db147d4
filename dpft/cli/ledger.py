"""``dpft ledger``: the books of a data set, made, shown and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpft_accounting import Bound, Budget, Ledger, LedgerReport, Room, Unit, verify
from rich.console import Console
from rich.table import Table

from dpft.errors import InputError
from dpft.report.write import figure


@dataclass(frozen=True)
class NextRun:
    """The run that somebody plans: so many Poisson steps at this rate, on one part or all of the data."""

    sample_rate: float
    steps: int
    part: str | None


def next_run(sample_rate: float | None, steps: int | None, part: str | None) -> NextRun | None:
    """The planned run that the options describe, if any. Errors: InputError for half of one."""
    if sample_rate is None and steps is None and part is None:
        return None
    if sample_rate is None or steps is None:
        raise InputError("A planned run needs --sample-rate and --steps. Give both, or neither.")
    return NextRun(sample_rate, steps, part)


def create_ledger(
    path: Path,
    dataset: str,
    unit: Unit,
    budget: Budget,
    parts: Sequence[str],
    *,
    adaptive: bool,
) -> None:
    """A new ledger; an existing file is refused, whatever it holds."""
    if path.exists():
        raise InputError(f"There is already a file {path}. Look into it with: dpft ledger show {path}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    how: Literal["planned", "adaptive_rdp"] = "adaptive_rdp" if adaptive else "planned"
    with Ledger.open(path, dataset, unit, budget, filter=how, parts=parts):
        pass
    print(f"{path}: epsilon {budget.epsilon:g} at delta {budget.delta:g} for each {unit.name} of {dataset}")


def show_ledgers(paths: Sequence[Path], delta: float | None, following: NextRun | None, *, as_json: bool) -> None:
    """A table for each data set: spent, left, by run, and what remains for a planned run."""
    shown = [(path, *_looked_up(path, delta, following)) for path in paths]
    if as_json:
        values = [_as_json(path, report, room, following) for path, report, room in shown]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=2, allow_nan=False))
        return
    console = Console()
    for number, (path, report, room) in enumerate(shown):
        if number:
            console.print()
        _show(console, path, report, room, following)


def verify_ledger(path: Path, *, as_json: bool) -> None:
    """Check a ledger's chain; a break raises and names the line."""
    summary = verify(path)
    if as_json:
        print(json.dumps(summary.to_dict(), indent=2))
    else:
        print(f"{path}: {summary}")


def delta_of(ledger: Ledger, delta: float | None) -> float:
    """The δ that was given, or the budget's."""
    if delta is not None:
        return delta
    if ledger.budget is None:
        raise InputError("The ledger has no budget to take delta from. Give --delta.")
    return ledger.budget.delta


def _looked_up(path: Path, delta: float | None, following: NextRun | None) -> tuple[LedgerReport, Room | None]:
    ledger = Ledger.read(path)
    report = ledger.report(delta_of(ledger, delta))
    if following is None:
        return report, None
    if ledger.budget is None:
        raise InputError(f"{path} has no budget, so nothing bounds a next run. Leave --sample-rate and --steps out.")
    part = None if following.part is None else (following.part,)
    return report, ledger.room(following.sample_rate, following.steps, part)


def _as_json(path: Path, report: LedgerReport, room: Room | None, following: NextRun | None) -> dict[str, Any]:
    value = {"file": str(path), **report.to_dict()}
    if following is not None:
        found = {"noise_multiplier": room.sigma, "epsilon": room.epsilon.to_dict()} if room else None
        value["next_run"] = {"sample_rate": following.sample_rate, "steps": following.steps, "room": found}
    return value


def _show(console: Console, path: Path, report: LedgerReport, room: Room | None, following: NextRun | None) -> None:
    kind = "adaptive" if report.adaptive else "planned"
    console.print(
        f"data set {report.dataset}, each {report.unit.name}, {report.unit.adjacency}, {kind} ({path})",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "part", "mechanism", "reserved", "planned", "executed", "epsilon alone"):
        table.add_column(column, overflow="fold")
    for run in report.runs:
        alone = figure(run.epsilon.upper) if run.epsilon else "not stated"
        table.add_row(run.name, ", ".join(run.parts), _in_words(run.mechanism.to_dict()), str(run.reserved),
                      str(run.planned), str(run.committed), alone)  # fmt: skip
    console.print(table if report.runs else "no runs yet")
    for part, bound in report.by_part.items():
        console.print(f"spent on {part}: epsilon {figure(bound.upper)}{_left(report, bound)}", highlight=False)
    remarks = "".join(f"; {flag}" for flag in report.spent.flags)
    console.print(
        f"spent: epsilon {figure(report.spent.upper)}{_left(report, report.spent)} at delta {report.delta:g}{remarks}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if following is not None:
        console.print(_room_in_words(room, following), highlight=False, soft_wrap=True)


def _left(report: LedgerReport, spent: Bound) -> str:
    if report.budget is None:
        return ""
    over = "" if spent.upper <= report.budget.epsilon else " (more than the budget, at this delta)"
    return f" of {figure(report.budget.epsilon)}{over}"


def _room_in_words(room: Room | None, following: NextRun) -> str:
    asked = f"{following.steps} steps at sample rate {following.sample_rate:g}"
    if room is None:
        return f"left for a run of {asked}: nothing"
    return (
        f"left for a run of {asked}: epsilon {figure(room.epsilon.upper)} of its own, with noise multiplier "
        f"{room.sigma:g} or more"
    )


def _in_words(mechanism: dict[str, Any]) -> str:
    numbers = ", ".join(
        f"{k}={v:g}" if isinstance(v, float) else f"{k}={_inner(v)}"
        for k, v in mechanism.items()
        if k not in ("kind", "v", "steps") and v is not None
    )
    return f"{mechanism['kind']}({numbers})"


def _inner(value: Any) -> str:
    if isinstance(value, dict):
        return (
            _in_words(value)
            if "kind" in value
            else "{" + ", ".join(f"{k}: {_inner(v)}" for k, v in value.items()) + "}"
        )
    return "[" + ", ".join(_inner(item) for item in value) + "]" if isinstance(value, list) else str(value)

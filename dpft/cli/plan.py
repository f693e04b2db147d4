"""``dpft plan``: the promise before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dpft.config import load_recipe
from dpft.config.explain import shown
from dpft.engine.plan import Plan, plan
from dpft.errors import InputError
from dpft.report.statement import adjacency_in_words
from dpft.report.write import figure


def plan_for_recipe(path: Path, overrides: list[str], options: dict[str, Any]) -> Plan:
    """The plan of a recipe; options beside it are refused rather than ignored."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(f"Expected a recipe or options, found both. Use --set privacy.{given[0]}=... instead.")
    recipe = load_recipe(path, overrides)
    return plan(**recipe.privacy.model_dump(), unit=recipe.data.unit)


def plan_for_options(overrides: list[str], options: dict[str, Any]) -> Plan:
    """The plan of the command line's own options."""
    if overrides:
        raise InputError(f"Expected a recipe for --set {shown(overrides[0])} to change. Give one, or options alone.")
    for name, flag in (("delta", "--delta"), ("expected_batch", "--batch")):
        if options[name] is None:
            raise InputError(f"Expected {flag}, found none. Give it, or a recipe.")
    return plan(**{**options, "clip": 1.0 if options["clip"] is None else options["clip"]})


def show_plan(made: Plan, *, as_json: bool) -> None:
    """Print the plan as a table, or as JSON."""
    if as_json:
        print(json.dumps(made.to_dict(), indent=2, allow_nan=False))
    else:
        Console().print(plan_table(made))


def plan_table(made: Plan) -> Table:
    """The plan, every accountant's opinion, and what they assume."""
    table = Table(title="Plan", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "guarantee", f"epsilon {figure(made.epsilon.upper)} at delta {made.delta:g} for each {made.unit.name}"
    )
    table.add_row("adjacency", adjacency_in_words(made))
    table.add_row(
        "sampler", f"{made.sampler}, rate {made.sample_rate:.6g}, expected batch {made.expected_batch_size:g}"
    )
    table.add_row("steps", str(made.steps))
    table.add_row("noise multiplier", f"{made.noise_multiplier:.6g}, clip {made.clip:g}")
    for row in made.certificate["rows"]:
        remarks = "".join(f"; {flag}" for flag in row["flags"])
        low, high = figure(row["lower"]), figure(row["upper"])
        bounds = f"epsilon between {low} and {high}" if row["lower"] else f"epsilon at most {high}"
        table.add_row(f"  {row['method'].upper()}", bounds + remarks)
    for flag in made.epsilon.flags:
        table.add_row("  remark", flag)
    return table

"""``dpft plan``: the promise before anything runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dpft_accounting import Budget, Risk, TuningPlan, plan_tuning
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpft.config import load_recipe
from dpft.config.dump import toml_value
from dpft.config.explain import shown
from dpft.cost import Estimate, estimates, in_words
from dpft.engine.plan import Plan, plan, plan_from
from dpft.errors import InputError
from dpft.report.statement import adjacency_in_words
from dpft.report.write import figure
from dpft.suggest import Suggestion, delta_for, remarks, suggest


def plan_for_recipe(path: Path, overrides: list[str], options: dict[str, Any]) -> Plan:
    """The plan of a recipe; options beside it are refused rather than ignored."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(f"Expected a recipe or options, found both. Use --set privacy.{given[0]}=... instead.")
    recipe = load_recipe(path, overrides)
    if not recipe.privacy.enabled:
        raise InputError(
            "privacy.enabled = false: such a run is NOT PRIVATE and promises nothing; leave the field out."
        )
    return plan_from(recipe.privacy, recipe.data.unit)


def cost_of_recipe(path: Path, overrides: list[str], made: Plan) -> tuple[Estimate, ...]:
    """About what the planned recipe takes on each machine; nothing where its model's shape is not at hand."""
    return estimates(load_recipe(path, overrides), made.steps)


def plan_for_options(
    overrides: list[str], options: dict[str, Any], risk: Risk | None = None, mean_trials: float | None = None
) -> tuple[Plan, TuningPlan | None]:
    """The plan of the command line's own options; with ``mean_trials``, of each trial of a search within epsilon."""
    if overrides:
        raise InputError(f"Expected a recipe for --set {shown(overrides[0])} to change. Give one, or options alone.")
    for name, flag in (("delta", "--delta"), ("expected_batch", "--batch")):
        if options[name] is None:
            raise InputError(f"Expected {flag}, found none. Give it, or a recipe.")
    options = {**options, "clip": 1.0 if options["clip"] is None else options["clip"]}
    if mean_trials is None:
        return plan(**options, risk=risk), None
    if risk is not None or options["epsilon"] is None:
        raise InputError("Expected --epsilon with --mean-trials: the budget of the whole search. Give it.")
    once = plan(**options)  # says what is wrong with the options, and how many steps at which rate
    search = plan_tuning(
        lambda sigma: replace(once, noise_multiplier=sigma).mechanism,
        Budget(options["epsilon"], once.delta), mean_trials, unit=once.unit,
    )  # fmt: skip
    return plan(**{**options, "epsilon": None, "noise_multiplier": search.sigma}), search


def with_suggested(options: dict[str, Any], risk: Risk | None = None) -> tuple[dict[str, Any], Suggestion | None]:
    """The options, completed by a suggestion where they name a budget and a public size and nothing of the work."""
    work = ("expected_batch", "epochs", "steps", "sample_rate", "noise_multiplier")
    epsilon, examples = options["epsilon"], options["examples"]
    if risk is not None or epsilon is None or examples is None or any(options[name] is not None for name in work):
        return options, None
    found = suggest(examples, epsilon)
    chosen = {"expected_batch": found.expected_batch, "epochs": found.epochs}
    usual = {"delta": delta_for(examples), "clip": found.clip}
    return {**options, **chosen, **{k: v if options[k] is None else options[k] for k, v in usual.items()}}, found


def risk_from(advantage: float | None, tpr: float | None, fpr: float | None) -> Risk | None:
    """The attack risk that the options allow, if any."""
    return None if advantage is tpr is fpr is None else Risk(advantage=advantage, tpr=tpr, fpr=fpr)


def show_plan(
    made: Plan,
    search: TuningPlan | None = None,
    suggested: Suggestion | None = None,
    cost: Sequence[Estimate] = (),
    *,
    as_json: bool,
) -> None:
    """Print the plan as a table, or as JSON; with the settings that were suggested for it, or a remark on its own."""
    if as_json:
        value = made.to_dict()
        if suggested is not None:
            value["suggested"] = {line.key: line.value for line in suggested.lines()}
        if search is not None:
            value["search"] = {"mechanism": search.select.to_dict(), "epsilon": search.bound.to_dict()}
        if cost:
            value["estimates"] = [asdict(one) for one in cost]
        print(json.dumps(value, indent=2, allow_nan=False))
        return
    console = Console()
    if suggested is not None:
        console.print(suggested_table(suggested))
        console.print()
    table = plan_table(made)
    for one in cost:
        rough = f"about {in_words(one.seconds)} and {one.bytes / 1e9:.1f} GB"
        table.add_row("time, memory", f"{rough} on {one.machine} (an estimate, training alone)")
    console.print(table)
    for remark in remarks(made) if suggested is None else ():
        console.print(f"Suggestion: {remark}", highlight=False, markup=False, soft_wrap=True)
    if search is not None:
        console.print(
            f"That is one trial. The best of K such trials, K geometric with mean {search.select.mean:g}: epsilon "
            f"{figure(search.bound.upper)} in all at delta {made.delta:g}, if nothing of a losing trial leaves.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def suggested_table(suggested: Suggestion) -> Table:
    """Lines for a recipe, by dotted key as ``--set`` takes them, with their reasons."""
    table = Table(title="Suggested", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for line in suggested.lines():
        table.add_row(Text(f"{line.key} = {toml_value(line.value)}"), Text(line.why, style="dim"))
    return table


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
    table.add_row("noise multiplier", f"{made.noise_multiplier:.6g}, clip {made.clip:g}, {made.clipping}")
    for row in made.certificate["rows"]:
        remarks = "".join(f"; {flag}" for flag in row["flags"])
        low, high = figure(row["lower"]), figure(row["upper"])
        bounds = f"epsilon between {low} and {high}" if row["lower"] else f"epsilon at most {high}"
        table.add_row(f"  {row['method'].upper()}", bounds + remarks)
    for flag in made.epsilon.flags:
        table.add_row("  remark", flag)
    return table

"""``dpft run`` and ``dpft report``: what the operator sees. Public figures only."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dpft.cli.plan import plan_table
from dpft.config import load_recipe
from dpft.engine.plan import Plan
from dpft.report.write import figure

_UNPROTECTED = "NOT PRIVATE: this run trains without clipping and noise (privacy.enabled = false)"


def run_recipe(path: Path, overrides: list[str], out: Path | None, *, resume: bool) -> None:
    """Run a recipe with a progress bar and end with a short table."""
    recipe = load_recipe(path, overrides)  # before torch is imported: a typing mistake answers at once
    from dpft.run import Outcome, Watch, run

    console = Console()
    folder = out or Path("runs") / recipe.name
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress, _stop_signal() as stopped:
        bar = progress.add_task(
            "private steps" if recipe.privacy.enabled else "steps WITHOUT privacy", total=None, visible=False
        )

        def planned(plan: Plan) -> None:
            # A run without privacy carries no plan out, so none of the plan's promises may stand above it.
            console.print(plan_table(plan) if recipe.privacy.enabled else _UNPROTECTED)
            progress.update(bar, total=plan.steps)

        watch = Watch(
            say=lambda text: console.print(f"· {text}", highlight=False),
            planned=planned,
            step=lambda done, of: progress.update(bar, completed=done, total=of, visible=True),
            stop=lambda: bool(stopped),
        )
        outcome: Outcome = run(recipe, folder, resume=resume, watch=watch)
    console.print(_outcome_table(outcome))


def _outcome_table(outcome: object) -> Table:
    from dpft.run import Outcome

    assert isinstance(outcome, Outcome)
    made = outcome.statement
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    kind = "private " if made["private"] else ""
    for name, value in outcome.scores.items():
        shown = f"{value:.3f} on {outcome.heldout_records} held-out records" if isinstance(value, float) else value
        table.add_row(kind + name, shown)
    low, high = figure(made["epsilon"]["lower"]), figure(made["epsilon"]["upper"])
    table.add_row("epsilon", f"{high} at delta {made['delta']:g} (lower bound {low}), {made['adjacency']}")
    table.add_row("steps", f"{made['steps_charged']} charged of {made['steps_planned']} planned")
    table.add_row("report", str(outcome.folder / "report.html"))
    table.add_row("adapter", str(outcome.folder / "adapter"))
    if not made["private"]:
        table.add_row("NOT PRIVATE", made["noise_source"])
    return table


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """SIGTERM and SIGINT ask for a stop after the current step; a second one acts at once."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rebuild_report(folder: Path) -> None:
    """Write the three report files again, from plan, ledger and public metrics."""
    from dpft.report.write import write_report

    made = write_report(folder)
    Console().print(f"epsilon {figure(made['epsilon']['upper'])} at delta {made['delta']:g}; {folder / 'report.html'}")

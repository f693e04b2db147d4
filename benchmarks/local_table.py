"""What privacy costs in accuracy: LoRA, adapter and Compacter on the quickstart's records, private and not.

    python benchmarks/local_table.py --jobs 2 --threads 1 --write

The private runs are ``dpft run`` with the quickstart's recipe (LoRA), or with another ``[method]``; the others are
their twins (``privacy.enabled = false``): same batches, steps and schedule, no clipping and no noise, at a learning
rate of their own. Each finished run is a line of ``results/local.jsonl``; with ``--write`` runs that stand there are
not repeated.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from common import RESULTS, Records, heading, load_records, publish, table
from linear_probe import linear_probe, majority
from methods import REMOVED
from whole_runs import TWIN, Run, add_options, compute_of, mean_and_sd, results

from dpft.engine.plan import plan_from

FILE = RESULTS / "local.jsonl"


class Row(NamedTuple):
    """One method: what it overrides in the recipe, and the rates without privacy."""

    overrides: tuple[str, ...]
    ordinary: tuple[str, ...]


# What names a kept run: where the quickstart is retuned, this has to be as well, and the table is measured anew.
STEPS = ("privacy.epochs=4.0", "privacy.expected_batch=512")


def _row(method: Sequence[str], private: tuple[str, str], ordinary: tuple[str, str]) -> Row:
    return Row((*method, *STEPS, *_rates(*private)), _rates(*ordinary))


def _rates(lr: str, head_lr: str) -> tuple[str, ...]:
    return f"optimizer.lr={lr}", f"optimizer.head_lr={head_lr}"


ROWS = {
    "LoRA": _row((), ("1.5e-2", "1.5e-2"), ("5e-3", "1e-2")),
    "adapter": _row(
        (*REMOVED, 'method.name="yu2022-adapter"', "method.bottleneck=16"), ("1e-2", "1.5e-2"), ("1e-2", "1e-2")
    ),
    "Compacter": _row(
        (*REMOVED, 'method.name="compacter"', "method.n=4", "method.reduction=8", "method.norms=true"),
        ("1e-2", "1.5e-2"),
        ("3e-3", "1e-2"),
    ),
}


def main() -> None:
    options = _options()
    rows = {name: row for name, row in ROWS.items() if not options.only or name in options.only}
    wanted = [run for name, row in rows.items() for run in _pair(name, row, options)]
    runs = results(wanted, options, FILE)
    publish("local", report(load_records(options.set), rows, runs), write=options.write)


def _pair(name: str, row: Row, options: argparse.Namespace) -> list[Run]:
    private = (*row.overrides, *options.set)
    twin = (*private, *row.ordinary, TWIN)
    return [Run(name, overrides, seed) for seed in range(options.seeds) for overrides in (private, twin)]


def report(records: Records, rows: dict[str, Row], runs: Sequence[Run]) -> str:
    """The heading, what ran, and a line a method with the price of privacy in points."""
    recipe = records.recipe
    plan = plan_from(recipe.privacy, recipe.data.unit)
    setting = (
        f"- records: {len(records.train)} to train, {len(records.heldout)} held out; "
        f"{plan.steps} steps of {plan.expected_batch_size:g} expected "
        f"records, matrix products in {str(compute_of(recipe)).removeprefix('torch.')}\n"
        f"- each private run: epsilon {plan.epsilon.upper:.4g} at delta {plan.delta:g}\n"
        f"- majority class {100 * majority(records):.1f} %; linear probe on frozen features, not private, "
        f"{100 * linear_probe(records):.1f} %\n"
    )
    columns = ["method", "private (%)", "not private (%)", "price (points)", "each private run", "s a run"]
    lines = [_line(name, [run for run in runs if run.name == name]) for name in rows]
    return heading("Accuracy with and without privacy") + setting + "\n" + table(columns, lines)


def _line(name: str, runs: Sequence[Run]) -> list[str]:
    private = [run for run in runs if TWIN not in run.overrides]
    scores, ordinary = [run.score for run in private], [run.score for run in runs if TWIN in run.overrides]
    price = 100 * (statistics.mean(ordinary) - statistics.mean(scores))
    each = ", ".join(f"{100 * score:.2f}" for score in scores)
    seconds = f"{statistics.median(run.seconds for run in private):.0f}"
    return [name, mean_and_sd(scores), mean_and_sd(ordinary), f"{price:.1f}", each, seconds]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), help="the methods to run")
    parser.add_argument("--set", nargs="+", default=[], help="key=value for every run, for a short test")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()

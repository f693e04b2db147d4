"""Every method on the movie reviews: accuracy with and without privacy.

    python benchmarks/methods.py --seeds 3 --jobs 2 --threads 1 --write
    python benchmarks/methods.py --search 3e-4 1e-3 3e-3 --only LoRA    # learning rates, on this public data

The private run is ``dpft run`` with the quickstart's recipe and another ``[method]``; the other is the same
without clipping and noise. The reviews are public, so choosing learning rates on them costs no privacy; on
private data such a search would have to be charged. Each finished run is a line of ``results/methods.jsonl``;
with ``--write`` runs that stand there are not repeated, and the table is made of all of them.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import QUICKSTART, RESULTS, Records, heading, load_records, publish, table
from variants import quiet
from whole_runs import TWIN, Run, add_options, compute_of, mean_and_sd, of_file, results

from dpft.config import load_recipe
from dpft.engine.plan import plan_from
from dpft.models.precision import attention_for
from dpft.models.source import resolve
from dpft.per_sample.capture import trainable
from dpft.run import build_model

FILE = RESULTS / "methods.jsonl"
REMOVED = tuple(f"method.{field}=" for field in ("rank", "alpha", "targets"))  # the quickstart's own


@dataclass(frozen=True)
class Row:
    """One method: what to override in the recipe, and the learning rates of the added parameters, with and without
    privacy; None where the method is a way to pay, which nothing is without privacy. The head has 1e-2
    throughout."""

    overrides: tuple[str, ...]
    lr: float
    ordinary_lr: float | None


# The method "tokens" has no row: a few rows of the embedding are for words that a model does not know yet, and the
# reviews have none that the encoder lacks.
ROWS = {
    "head only": Row(('method.name="head"',), 1e-2, 1e-2),
    "BitFit": Row(('method.name="bitfit"',), 1e-2, 3e-3),
    "IA3": Row(('method.name="ia3"',), 3e-2, 1e-2),
    "normalisation layers": Row(('method.name="norms"',), 1e-2, 3e-3),
    "last block": Row(('method.name="last-k"', "method.k=1"), 3e-3, 3e-4),
    "LoRA, rank 4": Row(("method.rank=4", 'method.targets=["query", "value"]'), 3e-2, 3e-3),
    "LoRA, rank 4, every layer": Row(("method.rank=4", 'method.targets=["all-linear"]'), 1e-2, 3e-3),
    "adapter, bottleneck 16": Row(('method.name="yu2022-adapter"', "method.bottleneck=16"), 1e-2, 3e-3),
    "Houlsby, bottleneck 64": Row(('method.name="houlsby2019"',), 1e-2, 3e-3),
    "Pfeiffer, reduction 16": Row(('method.name="pfeiffer2020"',), 1e-2, 3e-3),
    "Compacter, n 4": Row(('method.name="compacter"', "method.n=4", "method.reduction=8"), 1e-2, 3e-3),
    "Compacter++, n 4": Row(('method.name="compacter++"',), 1e-2, 3e-3),
    "prompt, 20 vectors": Row(('method.name="prompt"', "method.length=20"), 1e-2, 1e-2),
    "prefix, 10 keys and values": Row(('method.name="prefix"', "method.length=10"), 1e-2, 1e-2),
    "ATTEMPT, 6 prompts of 20": Row(
        ('method.name="attempt"', "method.count=6", "method.length=20", "method.temperature=1.0"), 3e-2, 1e-2
    ),
    "SparseAdapter, half of 16": Row(
        ('method.name="sparse-adapter"', "method.bottleneck=16", "method.density=0.5", 'method.mask="synflow"'),
        1e-2,
        3e-3,
    ),
    "SparseAdapter, half of 16 by paid SNIP": Row(
        (
            'method.name="sparse-adapter"',
            "method.bottleneck=16",
            "method.density=0.5",
            'method.mask="snip"',
            "method.mask_steps=4",
        ),
        1e-2,
        None,
    ),
    "DSEE, rank 4 and 64 weights": Row(
        ('method.name="dsee"', "method.rank=4", "method.alpha=4.0", "method.nonzeros=64"), 3e-2, 3e-3
    ),
    "RAFT": Row(('method.name="raft"',), 3e-3, 3e-3),
    "RAFT and BitFit": Row(('method.name="raft"', 'beside.name="bitfit"'), 1e-2, 3e-3),
    "ladder, reduction 8": Row(('method.name="lst"', "method.reduction=8"), 1e-2, 3e-3),
    "full fine-tuning": Row(('method.name="full"',), 3e-4, 1e-4),
}


def main() -> None:
    options = _options()
    quiet()
    rows = {name: row for name, row in ROWS.items() if not options.only or name.startswith(tuple(options.only))}
    if options.search:
        wanted = [run_of(n, r, 0, lr, options) for n, r in rows.items() for lr in options.search]
        for run in results(wanted, options, FILE):
            print(f"{run.name}, learning rate {run.recipe.optimizer.lr:g}: {run.score:.4f}")
        return
    wanted = [run for name, row in rows.items() for run in _runs(name, row, options)]
    if options.kept:
        runs = [run for run in of_file(FILE) if any(run.same_as(w) for w in wanted)]
    else:
        runs = results(wanted, options, FILE)
    publish("methods", report(rows, runs, options), write=options.write)


def _runs(name: str, row: Row, options: Namespace) -> Iterator[Run]:
    for seed in range(options.seeds):
        yield run_of(name, row, seed, row.lr, options)
        if row.ordinary_lr is not None:
            yield run_of(name, row, seed, row.ordinary_lr, options, TWIN)


def run_of(name: str, row: Row, seed: int, lr: float, options: Namespace, *more: str) -> Run:
    removed = () if "LoRA" in name else REMOVED
    sizes = (f"privacy.epochs={options.epochs}", f"privacy.expected_batch={options.batch}")
    rates = (f"optimizer.lr={lr}", "optimizer.head_lr=1e-2")
    return Run(name, (*removed, *row.overrides, *sizes, *rates, *more), seed)


def report(rows: dict[str, Row], runs: Sequence[Run], options: Namespace) -> str:
    """The heading, the setting and one line a method."""
    columns = ["method", "trained numbers", "private (%)", "not private (%)", "learning rates"]
    measured = {run.name for run in runs}
    missing = rows.keys() - measured
    shown: Records = load_records(runs[0].overrides)
    plan = plan_from(shown.recipe.privacy, shown.recipe.data.unit)
    setting = (
        f"- {len(shown.train)} sentences to train, {len(shown.heldout)} held out; {options.epochs:g} epochs, "
        f"{plan.steps} steps of {plan.expected_batch_size:g} expected sentences, {options.seeds} seeds, products in "
        f"{str(compute_of(shown.recipe)).removeprefix('torch.')}\n"
        f"- each private run: epsilon {shown.recipe.privacy.epsilon:g} at delta {plan.delta:g}\n"
    )
    return (
        heading("Methods on the movie reviews")
        + setting
        + "\n"
        + table(columns, [_line(name, row, runs) for name, row in rows.items() if name in measured])
        + (f"\n\nNot measured yet: {', '.join(name for name in rows if name not in measured)}.\n" if missing else "")
    )


def _line(name: str, row: Row, runs: Sequence[Run]) -> list[str]:
    mine = [run for run in runs if run.name == name]
    private = [run.score for run in mine if TWIN not in run.overrides]
    ordinary = [run.score for run in mine if TWIN in run.overrides]
    rates = [f"{rate:g}" for rate in (row.lr, row.ordinary_lr) if rate is not None]
    scores = (mean_and_sd(s) if s else "–" for s in (private, ordinary))
    return [name, f"{trained_numbers(mine[0].overrides):,}", *scores, ", ".join(rates)]


def trained_numbers(overrides: Sequence[str]) -> int:
    """What trains in the end: a mask that is yet to be paid for keeps as many as any other of its density."""
    recipe: Any = load_recipe(QUICKSTART, overrides)
    if getattr(recipe.method, "mask_steps", 0):
        method = recipe.method.model_copy(update={"mask": "random", "mask_steps": 0})
        recipe = recipe.model_copy(update={"method": method})
    source = resolve(recipe.model.source, recipe.model.revision)
    model, _ = build_model(recipe, source, attention_for(torch.float32, torch.device("cpu")))
    return sum(p.numel() for p in trainable(model).values())


def _options(arguments: Sequence[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=512, help="expected sentences in a batch")
    parser.add_argument("--only", nargs="+", help="beginnings of the names of the methods to run")
    parser.add_argument("--kept", action="store_true", help="run nothing: the table of the runs that were kept")
    parser.add_argument("--search", type=float, nargs="+", help="learning rates to try, one private run each")
    add_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

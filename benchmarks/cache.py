"""A frozen model that runs once: ladder side-tuning and the head alone on a cache, beside LoRA, for as many epochs.

    python benchmarks/cache.py --epochs 20 --write
    python benchmarks/cache.py --search 1e-3 3e-3 1e-2 --only ladder    # learning rates, on this public data

Each row is a whole private training on the movie reviews, one after the other on the same machine: the pass that fills
the cache, all steps, and accuracy on held-out sentences. Each finished row is a line of ``results/cache.jsonl``; with
``--write`` rows that stand there are not repeated, so that a table broken off goes on where it was. Memory is that of
the pass and of two steps, in a process of its own, above what is held before each; pages of the cache's file that lie
in memory count, and are named apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import (
    RESULTS,
    Records,
    elsewhere,
    heading,
    keep,
    kept,
    load_records,
    peak_memory,
    publish,
    reset_peak,
    table,
)
from methods import REMOVED, trained_numbers
from variants import quiet
from whole_runs import compute_of

from dpft.cache.task import CachedTask
from dpft.config.cache_section import CacheSection
from dpft.engine.engine import PrivateEngine
from dpft.engine.plan import plan_from
from dpft.evaluate import scores
from dpft.models.losses import classification_loss
from dpft.models.precision import attention_for
from dpft.run import build_model
from dpft.schedule import build_optimizer, set_rates
from dpft.task import Task, task_of

ROWS_DONE = RESULTS / "cache.jsonl"
SIZES = ("privacy.expected_batch=800", "optimizer.head_lr=1e-2")  # of every row
BASE = "LoRA, rank 4"


@dataclass(frozen=True)
class Row:
    """What to override in the quickstart's recipe, the learning rate of what the method adds, and whether it has a
    cache."""

    overrides: tuple[str, ...]
    lr: float
    cached: bool = True


def _ladder(reduction: int, keep: str) -> tuple[str, ...]:
    return (*REMOVED, 'method.name="lst"', f"method.reduction={reduction}", f"method.keep={keep}")


ROWS = {
    BASE: Row(("method.rank=4", 'method.targets=["query", "value"]'), 3e-3, cached=False),
    "ladder, every block, r 8": Row(_ladder(8, "[]"), 3e-3),
    "ladder, last block, r 8": Row(_ladder(8, "[5]"), 3e-3),
    "ladder, last block, r 16": Row(_ladder(16, "[5]"), 3e-3),
    "no cache: ladder, last block, r 16": Row(_ladder(16, "[5]"), 3e-3, cached=False),
    "head only": Row((*REMOVED, 'method.name="head"'), 1e-2),
}


@dataclass(frozen=True)
class Times:
    """Seconds that filling the cache took (0 without one) and all steps; the cache's megabytes; the accuracy."""

    fill: float
    steps: float
    megabytes: float
    score: float


class _Given:
    """A run's task on records that are tokens already."""

    def __init__(self, task: Task) -> None:
        self.collate, self.length, self.synthetic, self.labels = task.collate, task.length, task.synthetic, task.labels

    def examples(self, records: Sequence[Any], folder: Path | None = None) -> list[Any]:
        return list(records)


@dataclass
class Training:
    """A model with its method, the task it trains on, and the engine. ``fill`` and ``megabytes`` as in Times."""

    records: Records
    model: Any
    task: Any
    examples: list[Any]
    engine: PrivateEngine
    fill: float
    megabytes: float

    def steps(self, at_most: int) -> float:
        """Seconds that the first steps take."""
        recipe, total = self.records.recipe, self.engine.plan.steps
        start = time.perf_counter()
        for batch in self.engine.batches(self.examples, self.task.collate, length=self.task.length):
            set_rates(self.engine.optimizer, recipe.optimizer, self.engine.steps_charged - 1, total)
            self.engine.step(batch)
            if self.engine.steps_charged == min(at_most, total):
                break
        return time.perf_counter() - start


@contextmanager
def training(row: Row, lr: float, options: Namespace, built: Callable[[], object] = lambda: None) -> Iterator[Training]:
    """All that a run makes before its first step. ``built`` is called when the model stands."""
    records = load_records([*row.overrides, *SIZES, f"privacy.epochs={options.epochs}", f"optimizer.lr={lr}"])
    recipe, compute = records.recipe, compute_of(records.recipe)
    model, _ = build_model(recipe, records.source, attention_for(compute, torch.device("cpu")))
    given = _Given(task_of(recipe.data, records.source, model))
    built()
    with tempfile.TemporaryDirectory() as name:
        folder, budget = Path(name), recipe.train.token_budget
        task: Any = given
        start = time.perf_counter()
        if row.cached:
            section = CacheSection(dtype=options.dtype)
            task = CachedTask(section, task, model, classification_loss, folder / "cache", compute, budget)
        examples = task.examples(records.train)
        fill = time.perf_counter() - start if row.cached else 0.0
        size = sum(path.stat().st_size for path in folder.glob("cache/*")) / 1e6
        with PrivateEngine(
            model, build_optimizer(recipe.optimizer, model, model.head), plan_from(recipe.privacy, recipe.data.unit),
            loss=classification_loss, ledger=folder / "ledger.jsonl", token_budget=budget, compute=compute,
        ) as engine:  # fmt: skip
            engine.preflight(task.synthetic())
            yield Training(records, model, task, examples, engine, fill, size)


def trained(row: Row, lr: float, options: Namespace) -> Times:
    """A whole private training."""
    with training(row, lr, options) as run:
        steps = run.steps(run.engine.plan.steps)
        recipe, held = run.records.recipe, run.records.heldout
        score = scores(run.model, held, run.records.collate, recipe.train.token_budget, compute_of(recipe))["accuracy"]
    return Times(run.fill, steps, run.megabytes, score)


def weigh(row: Row, options: Namespace) -> dict[str, float]:
    """MB that filling the cache takes at its peak above the built model, and two steps above what is held when all is
    prepared; of these, what is pages of files."""
    at_rest: dict[str, float] = {}
    with training(row, row.lr, options, lambda: at_rest.update(used=reset_peak())) as run:
        filling = peak_memory() - at_rest["used"]
        before, mapped = reset_peak(), _mapped()
        run.steps(2)
        return {"filling": filling, "step": peak_memory() - before, "mapped": _mapped() - mapped}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    if options.memory_of:
        print(json.dumps(weigh(ROWS[options.memory_of], options)))
        return
    rows = {name: row for name, row in ROWS.items() if not options.only or name.startswith(tuple(options.only))}
    if options.search:
        for name, row in rows.items():
            for lr in options.search:
                found = trained(row, lr, options)
                print(f"{name}, learning rate {lr:g}: {100 * found.score:.1f}%, {found.fill + found.steps:.0f} s")
        return
    publish("cache", report(rows, options), write=options.write)


def report(rows: dict[str, Row], options: Namespace) -> str:
    columns = ["method", "trained numbers", "s to fill", "s an epoch", "s in all", "times cheaper", "MB on disk"]
    columns += ["MB of memory to fill", "MB a step", "of which mapped", "private (%)"]
    found = _kept(options) if options.write else {}
    for name, row in rows.items():
        if name not in found:
            found[name] = trained(row, row.lr, options)
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
            if options.write:
                keep(ROWS_DONE, {"name": name, "options": _setting(options), "times": asdict(found[name])})
    lines = [_line(name, row, found, options) for name, row in rows.items()]
    privacy = load_records([*SIZES, f"privacy.epochs={options.epochs}"]).recipe.privacy
    setting = (
        f"- {options.epochs:g} epochs of {privacy.examples} sentences, {privacy.expected_batch} expected in a step; "
        f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}; cache in {options.dtype}; one training a row\n\n"
    )
    return heading("The frozen model runs once") + setting + table(columns, lines)


def _kept(options: Namespace) -> dict[str, Times]:
    """Rows that were finished before with the same options."""
    same = [one for one in kept(ROWS_DONE) if one["options"] == _setting(options)]
    return {one["name"]: Times(**one["times"]) for one in same}


def _setting(options: Namespace) -> dict[str, Any]:
    return {"epochs": options.epochs, "dtype": options.dtype, "threads": options.threads}


def _line(name: str, row: Row, found: dict[str, Times], options: Namespace) -> list[str]:
    mine, base = found[name], found.get(BASE)
    total = mine.fill + mine.steps
    memory = elsewhere("--memory-of", name)
    return [
        name,
        f"{trained_numbers(row.overrides):,}",
        f"{mine.fill:.1f}" if row.cached else "",
        f"{mine.steps / options.epochs:.2f}",
        f"{total:.0f}",
        f"{(base.fill + base.steps) / total:.1f}" if base else "",
        f"{mine.megabytes:.0f}" if row.cached else "",
        f"{memory['filling']:.0f}" if row.cached else "",
        f"{memory['step']:.0f}",
        f"{memory['mapped']:.0f}" if row.cached else "",
        f"{100 * mine.score:.1f}",
    ]


def _mapped() -> float:
    """MB of files that lie in this process's memory; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssFile:")), 0.0)


def _options(arguments: Sequence[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="on disk")
    parser.add_argument("--only", nargs="+", help="beginnings of the names of the rows to measure")
    parser.add_argument("--search", type=float, nargs="+", help="learning rates to try, one private run each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/results/")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

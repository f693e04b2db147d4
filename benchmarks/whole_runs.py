"""Whole runs of a recipe with overrides, some at a time, and what came of each; finished ones are kept in a file.

Every run is ``dpft.run.run`` itself, with fresh noise and fresh batches, into a folder that is thrown away. The movie
reviews are public, so that repeating a run on them, or choosing among runs, costs no privacy.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from common import QUICKSTART, keep, kept
from variants import quiet

from dpft.config import Recipe, load_recipe
from dpft.models.precision import compute_dtype
from dpft.run import run

TWIN = "privacy.enabled=false"
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One training; ``name``, ``overrides`` and ``seed`` say which, the rest what came of it."""

    name: str
    overrides: tuple[str, ...]
    seed: int
    scores: Scores = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def recipe(self) -> Recipe:
        return load_recipe(QUICKSTART, self.overrides).model_copy(update={"seed": self.seed})

    @property
    def score(self) -> float:
        return self.scores["accuracy"]

    def same_as(self, other: Run) -> bool:
        return (self.name, self.overrides, self.seed) == (other.name, other.overrides, other.seed)


def accuracy(asked: Run) -> Scores:
    """On the held-out records, which the recipe declares public."""
    with tempfile.TemporaryDirectory() as folder:
        found = run(asked.recipe, Path(folder) / "run").scores["accuracy"]
    return {"accuracy": float(found)}


def results(
    wanted: Sequence[Run], options: Namespace, file: Path, train: Callable[[Run], Scores] = accuracy
) -> list[Run]:
    """``wanted`` with what came of each. With ``--write`` those that stand in ``file`` are not repeated."""
    known = of_file(file) if options.write else []
    found = [run for run in known if any(run.same_as(w) for w in wanted)]
    return found + list(_finished([w for w in wanted if not any(w.same_as(k) for k in known)], options, file, train))


def of_file(file: Path) -> list[Run]:
    return [Run(**{**values, "overrides": tuple(values["overrides"])}) for values in kept(file)]


def _finished(wanted: Sequence[Run], options: Namespace, file: Path, train: Callable[[Run], Scores]) -> Iterator[Run]:
    """Each, as it ends; a worker takes one training and makes room for a fresh one, whose memory is clean."""
    start = (options.threads,)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), _quiet, start, max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(_trained, asked, train) for asked in wanted]):
            one = done.result()
            found = ", ".join(f"{name} {value:.4f}" for name, value in one.scores.items())
            print(f"{one.name}, seed {one.seed}: {found} in {one.seconds:.0f} s", file=sys.stderr, flush=True)
            if options.write:
                keep(file, asdict(one))
            yield one


def _trained(asked: Run, train: Callable[[Run], Scores]) -> Run:
    start = time.perf_counter()
    scores = train(asked)
    return replace(asked, scores=dict(scores), seconds=round(time.perf_counter() - start, 1))


def _quiet(threads: int) -> None:
    torch.set_num_threads(threads)
    quiet()


def compute_of(recipe: Recipe) -> torch.dtype:
    """The type that the recipe's matrix products run in on this machine."""
    return compute_dtype(recipe.train.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def mean_and_sd(values: Sequence[float]) -> str:
    """Percent, with the sample's standard deviation where there are several.

    >>> mean_and_sd([0.5]), mean_and_sd([0.5, 0.6])
    ('50.0', '55.0 ± 7.1')
    """
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def add_options(parser: ArgumentParser) -> None:
    """What every script of whole runs asks."""
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each job")
    parser.add_argument("--write", action="store_true", help="keep the runs, and put the table into results/")

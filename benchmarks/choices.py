"""What helps private training, one choice at a time: the movie reviews at the quickstart's epsilon.

    python benchmarks/choices.py --seeds 3 --jobs 2 --threads 1 --write
    python benchmarks/choices.py --only base clip averag           # some of them, by the beginnings of their names
    python benchmarks/choices.py --list                            # their names and steps; trains nothing

Every row is ``dpft run`` on one fixed base (LoRA of rank 4 on every layer, 2 epochs, batches of 512, rate 1e-2) with
its own overrides; the noise is calibrated to the same epsilon each time. The reviews are public, so that searching on
them costs no privacy; on private data such a search would have to be charged. Each finished run is a line of
``results/choices.jsonl``; with ``--write`` runs that stand there are not repeated.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch
from common import QUICKSTART, RESULTS, heading, keep, kept, load_records, publish, table
from quickstart_baselines import mean_and_sd, private_run
from torch import nn
from variants import quiet

from dpft.config import load_recipe
from dpft.engine.plan import Plan, plan_from
from dpft.models.classifier import Classifier

RUNS = RESULTS / "choices.jsonl"
BASE = (
    "method.rank=4",
    'method.targets=["all-linear"]',
    "privacy.epochs=2.0",
    "privacy.expected_batch=512",
    "optimizer.lr=1e-2",
    "optimizer.head_lr=1e-2",
)
BLOCKS = ("method.rank=", "method.alpha=", "method.targets=", 'method.name="last-k"')
DRAWN = "head drawn at random"  # no recipe asks for it, so that this one name stands for what is done
CHOICES: dict[str, tuple[str, ...]] = {
    "base": (),
    DRAWN: (),
    "pooling cls": ('model.pooling="cls"',),
    "features not scaled": ("model.feature_norm=",),
    **{f"features of norm {n}": (f"model.feature_norm={n}.0",) for n in (1, 3, 30)},
    **{f"batch {n}": (f"privacy.expected_batch={n}",) for n in (128, 256, 1024, 2048)},
    **{f"epochs {n}": (f"privacy.epochs={n}.0",) for n in (1, 5, 10)},
    **{f"rate {lr}": (f"optimizer.lr={lr}", f"optimizer.head_lr={lr}") for lr in ("1e-3", "3e-3", "3e-2")},
    **{f"rate of the head {lr}": (f"optimizer.head_lr={lr}",) for lr in ("3e-3", "3e-2", "1e-1")},
    **{f"clip {c}": (f"privacy.clip={c}",) for c in (0.1, 0.3, 3.0, 10.0)},
    "clipping auto-s": ('privacy.clipping="auto-s"',),
    "adamw, decay 0.01": ('optimizer.name="adamw"', "optimizer.weight_decay=0.01"),
    **{
        f"adam-bc, floor {floor}": ('optimizer.name="adam-bc"', f"optimizer.noise_floor={floor}")
        for floor in (0.1, 0.3, 1.0, 3.0)
    },
    **{
        f"sgd, rate {lr}": ('optimizer.name="sgd"', f"optimizer.lr={lr}", f"optimizer.head_lr={lr}")
        for lr in ("1.0", "3.0", "10.0")
    },
    "eps 1e-6": ("optimizer.eps=1e-6",),
    **{
        f"betas {one}, {two}": (f"optimizer.betas=[{one}, {two}]",)
        for one, two in ((0.0, 0.999), (0.5, 0.999), (0.95, 0.999), (0.9, 0.9), (0.9, 0.98))
    },
    "averaging ema, decay 0.8": ('optimizer.average="ema"', "optimizer.average_decay=0.8"),
    "averaging ema": ('optimizer.average="ema"',),
    "averaging tail, half": ('optimizer.average="tail"', "optimizer.average_tail=0.5"),
    "averaging tail": ('optimizer.average="tail"',),
    "warm-up 0.1": ("optimizer.warmup=0.1",),
    "schedule constant": ('optimizer.schedule="constant"',),
    "schedule cosine": ('optimizer.schedule="cosine"',),
    "schedule constant, averaging ema": ('optimizer.schedule="constant"', 'optimizer.average="ema"'),
    "schedule constant, averaging tail": ('optimizer.schedule="constant"', 'optimizer.average="tail"'),
    **{
        f"scaled, renewed every {n}": ('optimizer.scale="privatised"', f"optimizer.scale_every={n}") for n in (1, 5, 10)
    },
    **{f"last {k} of 6 blocks in full": (*BLOCKS, f"method.k={k}") for k in (1, 2, 6)},
    "rank 1": ("method.rank=1", "method.alpha=1.0"),
    "rank 16": ("method.rank=16", "method.alpha=16.0"),
}


@dataclass(frozen=True)
class Run:
    """One training, and what came out of it; ``name``, ``overrides`` and ``seed`` say which."""

    name: str
    overrides: tuple[str, ...]
    seed: int
    score: float = 0.0
    seconds: float = 0.0

    @property
    def plan(self) -> Plan:
        recipe = load_recipe(QUICKSTART, self.overrides)
        return plan_from(recipe.privacy, recipe.data.unit)

    def same_as(self, other: Run) -> bool:
        return (self.name, self.overrides, self.seed) == (other.name, other.overrides, other.seed)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    names = [name for name in CHOICES if not options.only or name.startswith(tuple(options.only))]
    wanted = [run_of(name, seed, options.set) for name in names for seed in range(options.seeds)]
    if options.list:
        for name in names:
            print(f"{name}: {run_of(name, 0, options.set).plan.steps} steps")
        return
    known = _kept() if options.write else []
    runs = [run for run in known if any(run.same_as(w) for w in wanted)]
    runs += finished([w for w in wanted if not any(w.same_as(run) for run in known)], options)
    publish("choices", report(runs, options.seeds), write=options.write)


def run_of(name: str, seed: int, more: Sequence[str] = ()) -> Run:
    return Run(name, (*BASE, *CHOICES[name], *more), seed)


def finished(wanted: Sequence[Run], options: Namespace) -> Iterator[Run]:
    """Each run, as it ends; kept in the file with ``--write``."""
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), torch.set_num_threads, (options.threads,)) as pool:
        for done in as_completed([pool.submit(train, run) for run in wanted]):
            run = done.result()
            said = f"{run.name}, seed {run.seed}: {run.score:.4f} in {run.seconds:.0f} s"
            print(said, file=sys.stderr, flush=True)
            if options.write:
                keep(RUNS, asdict(run))
            yield run


def train(run: Run) -> Run:
    quiet()
    start = time.perf_counter()
    records = load_records(run.overrides)
    with drawn_head(run.seed, run.name == DRAWN):
        score = private_run(records, run.seed)
    return replace(run, score=score, seconds=round(time.perf_counter() - start, 1))


@contextmanager
def drawn_head(seed: int, really: bool) -> Iterator[None]:
    """While open, heads start as transformers draws them, with deviation 0.02, instead of at zero."""
    zero = Classifier.__init__

    def drawn(self: Classifier, *args: Any, **kwargs: Any) -> None:
        zero(self, *args, **kwargs)
        nn.init.normal_(self.head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))

    with patch.object(Classifier, "__init__", drawn if really else zero):
        yield


def report(runs: Sequence[Run], seeds: int) -> str:
    """The heading, the setting, and one line a choice with its distance from the base."""
    plan = run_of("base", 0).plan
    setting = (
        f"- base: LoRA of rank 4 on every layer, {plan.steps} steps of {plan.expected_batch_size} expected sentences, "
        f"rate 1e-2, falling linearly, Adam, clip 1, flat; {seeds} seeds\n"
        f"- each run: epsilon {plan.epsilon.upper:.3g} at delta {plan.delta:g}\n"
        "- points: difference of the means to the base, ± its standard error\n"
    )
    columns = ["choice", "steps", "noise multiplier", "accuracy (%)", "points", "s a run"]
    done = [name for name in CHOICES if any(run.name == name for run in runs)]
    return heading("Choices for private training") + setting + "\n" + table(columns, [_line(n, runs) for n in done])


def _line(name: str, runs: Sequence[Run]) -> list[str]:
    mine = [run for run in runs if run.name == name]
    scores, base = [r.score for r in mine], [r.score for r in runs if r.name == "base"]
    points, plan = "" if name == "base" else difference(scores, base), mine[0].plan
    seconds = f"{statistics.median(r.seconds for r in mine):.0f}"
    return [name, str(plan.steps), f"{plan.noise_multiplier:.3f}", mean_and_sd(scores), points, seconds]


def difference(scores: Sequence[float], base: Sequence[float]) -> str:
    """Of the means, in points, with its standard error where both have several runs.

    >>> difference([0.52, 0.54], [0.50, 0.50]), difference([0.5], [])
    ('+3.0 ± 1.0', '')
    """
    if not base:
        return ""
    mean = f"{100 * (statistics.mean(scores) - statistics.mean(base)):+.1f}"
    if min(len(scores), len(base)) < 2:
        return mean
    return f"{mean} ± {100 * math.sqrt(sum(statistics.variance(s) / len(s) for s in (scores, base))):.1f}"


def _kept() -> list[Run]:
    return [Run(**{**values, "overrides": tuple(values["overrides"])}) for values in kept(RUNS)]


def _options(arguments: Sequence[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="beginnings of the names of the choices to run")
    parser.add_argument("--list", action="store_true", help="the choices and their steps; nothing is trained")
    parser.add_argument("--set", nargs="+", default=[], help="key=value for every run, after its own, for a short test")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each job")
    parser.add_argument("--write", action="store_true", help="keep the runs, and put the table into results/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

"""What helps private training, one choice at a time: the movie reviews at the quickstart's epsilon.

    python benchmarks/choices.py --seeds 3 --jobs 2 --threads 1 --write
    python benchmarks/choices.py --only base clip averag           # some of them, by the beginnings of their names
    python benchmarks/choices.py --list                            # their names and steps; trains nothing

Every row is ``dpft run`` on one fixed base (the quickstart's recipe over two epochs instead of four, at twice the
rates: half of the time) with its own overrides; the noise is calibrated to the same epsilon each time. The
reviews are public, so that searching on them costs no privacy; on private data such a search would have to be charged.
Each finished run is a line of ``results/choices.jsonl``; with ``--write`` runs that stand there are not repeated.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from averages import AVERAGES, averaged_too
from common import RESULTS, heading, publish, table
from torch import nn
from variants import quiet
from whole_runs import Run, Scores, add_options, mean_and_sd, results

from dpft.engine.plan import Plan, plan_from
from dpft.models.classifier import Classifier
from dpft.run import run

FILE = RESULTS / "choices.jsonl"
BASE = ("privacy.epochs=2.0", "privacy.expected_batch=512", "optimizer.lr=3e-2", "optimizer.head_lr=3e-2")


def _rate(lr: str) -> tuple[str, ...]:
    return f"optimizer.lr={lr}", f"optimizer.head_lr={lr}"


BLOCKS = ("method.rank=", "method.alpha=", "method.targets=", 'method.name="last-k"')
AVERAGED = ("base", "schedule constant")  # runs whose averages over the steps are evaluated as well
DRAWN = "head drawn at random"  # no recipe asks for it, so that this one name stands for what is done
CHOICES: dict[str, tuple[str, ...]] = {
    "base": (),
    DRAWN: (),
    "pooling cls": ('model.pooling="cls"',),
    "features not scaled": ("model.feature_norm=",),
    **{f"features of norm {n}": (f"model.feature_norm={n}.0",) for n in (1, 3, 30)},
    **{
        f"batch {n}, rate {lr}": (f"privacy.expected_batch={n}", *_rate(lr))
        for n, lr in ((128, "7.5e-3"), (256, "1.5e-2"), (1024, "3e-2"), (1024, "6e-2"), (2048, "6e-2"))
    },
    **{
        f"epochs {n}, rate {lr}": (f"privacy.epochs={n}.0", *_rate(lr))
        for n, lr in ((1, "6e-2"), (4, "1.5e-2"), (10, "5e-3"))
    },
    **{f"rate {lr}": _rate(lr) for lr in ("3e-3", "1e-2", "1e-1")},
    **{f"rate of the head {lr}": (f"optimizer.head_lr={lr}",) for lr in ("3e-3", "1e-2", "1e-1")},
    **{f"clip {c}": (f"privacy.clip={c}",) for c in (0.1, 0.3, 3.0, 10.0)},
    "clipping auto-s": ('privacy.clipping="auto-s"',),
    "adamw, decay 0.01": ('optimizer.name="adamw"', "optimizer.weight_decay=0.01"),
    **{
        f"adam-bc, floor {floor}": ('optimizer.name="adam-bc"', f"optimizer.noise_floor={floor}")
        for floor in (0.1, 0.3, 1.0, 3.0)
    },
    **{f"sgd, rate {lr}": ('optimizer.name="sgd"', *_rate(lr)) for lr in ("1.0", "3.0", "10.0")},
    "eps 1e-6": ("optimizer.eps=1e-6",),
    **{
        f"betas {one}, {two}": (f"optimizer.betas=[{one}, {two}]",)
        for one, two in ((0.0, 0.999), (0.5, 0.999), (0.95, 0.999), (0.9, 0.9), (0.9, 0.98))
    },
    "warm-up 0.1": ("optimizer.warmup=0.1",),
    "schedule constant": ('optimizer.schedule="constant"',),
    "schedule cosine": ('optimizer.schedule="cosine"',),
    **{
        f"scaled, renewed every {n}": ('optimizer.scale="privatised"', f"optimizer.scale_every={n}") for n in (1, 5, 10)
    },
    **{f"in the last {k} of 6 blocks": (f"method.blocks={k}",) for k in (1, 2, 3)},
    **{f"last {k} of 6 blocks in full": (*BLOCKS, f"method.k={k}") for k in (1, 6)},
    **{f"on every layer, rate {lr}": ('method.targets=["all-linear"]', *_rate(lr)) for lr in ("1e-2", "3e-2")},
    "rank 1": ("method.rank=1", "method.alpha=1.0"),
    "rank 16": ("method.rank=16", "method.alpha=16.0"),
}


def main() -> None:
    options = _options()
    quiet()
    names = [name for name in CHOICES if not options.only or name.startswith(tuple(options.only))]
    wanted = [run_of(name, seed, options.set) for name in names for seed in range(options.seeds)]
    if options.list:
        for name in names:
            print(f"{name}: {plan_of(run_of(name, 0, options.set)).steps} steps")
        return
    publish("choices", report(results(wanted, options, FILE, train)), write=options.write)


def run_of(name: str, seed: int, more: Sequence[str] = ()) -> Run:
    return Run(name, (*BASE, *CHOICES[name], *more), seed)


def plan_of(run: Run) -> Plan:
    return plan_from(run.recipe.privacy, run.recipe.data.unit)


def train(asked: Run) -> Scores:
    """Accuracy; and that of averages over the steps of the same training, where the schedule alone is in question."""
    averages: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        drawn_head(asked.seed, asked.name == DRAWN),
        averaged_too(averages, asked.name in AVERAGED),
    ):
        found = run(asked.recipe, Path(folder) / "run").scores
    return {"accuracy": float(found["accuracy"]), **averages}


@contextmanager
def drawn_head(seed: int, really: bool) -> Iterator[None]:
    """While open, heads start as transformers draws them, with deviation 0.02, instead of at zero."""
    zero = Classifier.__init__

    def drawn(self: Classifier, *args: Any, **kwargs: Any) -> None:
        zero(self, *args, **kwargs)
        nn.init.normal_(self.head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))

    with patch.object(Classifier, "__init__", drawn if really else zero):
        yield


def report(runs: Sequence[Run]) -> str:
    """The heading, the setting, and one line a choice with its distance from the base."""
    plan = plan_of(run_of("base", 0))
    setting = (
        f"- base: LoRA of rank 4 on query and value, {plan.steps} steps of {plan.expected_batch_size:g} expected "
        "sentences, rates 3e-2, falling linearly, Adam, clip 1, flat\n"
        f"- each run: epsilon {plan.epsilon.upper:.3g} at delta {plan.delta:g}\n"
        "- points: difference of the means to the base, ± its standard error\n"
    )
    columns = ["choice", "steps", "noise multiplier", "seeds", "accuracy (%)", "points", "s a run"]
    done = [name for name in CHOICES if any(run.name == name for run in runs)]
    averaged = [name for name in AVERAGED if name in done]
    return (
        heading("Choices for private training")
        + setting
        + f"\n{table(columns, [_line(name, runs) for name in done])}\n\n"
        + "Averages over the steps, evaluated in place of the last step of the same training; points: the mean of the\n"
        "differences within each training, ± its standard error.\n\n"
        + table(["schedule", "average", "points"], [line for name in averaged for line in _averages(name, runs)])
    )


def _line(name: str, runs: Sequence[Run]) -> list[str]:
    mine = [run for run in runs if run.name == name]
    scores, base = [r.score for r in mine], [r.score for r in runs if r.name == "base"]
    points, plan = "" if name == "base" else difference(scores, base), plan_of(mine[0])
    seconds = f"{statistics.median(r.seconds for r in mine):.0f}"
    noise = f"{plan.noise_multiplier:.3f}"
    return [name, str(plan.steps), noise, str(len(mine)), mean_and_sd(scores), points, seconds]


def _averages(name: str, runs: Sequence[Run]) -> Iterator[list[str]]:
    mine = [run for run in runs if run.name == name]
    for average in AVERAGES:
        gains = [100 * (run.scores[average] - run.score) for run in mine]
        error = f" ± {statistics.stdev(gains) / math.sqrt(len(gains)):.1f}" if len(gains) > 1 else ""
        yield ["falling linearly" if name == "base" else "constant", average, f"{statistics.mean(gains):+.1f}{error}"]


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


def _options(arguments: Sequence[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", help="beginnings of the names of the choices to run")
    parser.add_argument("--list", action="store_true", help="the choices and their steps; nothing is trained")
    parser.add_argument("--set", nargs="+", default=[], help="key=value for every run, after its own, for a short test")
    add_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

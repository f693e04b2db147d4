"""Where a logical step's time goes: the model's passes, and everything around them.

    python benchmarks/around.py --write

A real engine, with its sampler, ledger, noise and optimizer, on the quickstart's sentences, at the paper's batch of
2,000; each part's time is taken where it is called. "Around" is all but the passes and the clipping, which is what
ordinary training has no counterpart of at all or does much faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from common import Records, heading, load_records, publish, table
from dpft_accounting.ledger_run import LedgerRun
from engines import private_engine
from methods import REMOVED
from variants import quiet

import dpft.engine.accumulate
import dpft.engine.engine
from dpft.engine.engine import PrivateEngine
from dpft.engine.noise import GriddedGaussian

METHODS: dict[str, tuple[str, ...]] = {
    "LoRA, rank 4": (),
    "full fine-tuning": (*REMOVED, 'method.name="full"'),
}
# Part -> what is timed for it: (owner, name).
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "draw the members": ((dpft.engine.engine, "poisson_sample"),),
    "ledger": ((LedgerRun, "reserve"), (LedgerRun, "step")),
    "cut into micro-batches": ((dpft.engine.accumulate, "cut"),),
    "collate": (),
    "forward and backward pass": ((dpft.engine.accumulate, "collect"),),
    "norms, clipping, sums": ((dpft.engine.accumulate, "clipped_sum"),),
    "noise": ((GriddedGaussian, "release"),),
    "update": ((PrivateEngine, "_update"),),
}
MODEL = ("forward and backward pass", "norms, clipping, sums")
Times = dict[str, float]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    found = {name: _steps(load_records(METHODS[name]), options) for name in options.methods}
    publish("around", report(found, options), write=options.write)


def _steps(records: Records, options: argparse.Namespace) -> list[Times]:
    """Seconds of each part and of the whole, of each step but the first."""
    rate, found = options.batch / len(records.train), list[Times]()
    with (
        private_engine(records, batch=options.batch, sample_rate=rate, steps=options.steps + 1) as engine,
        timed() as times,
    ):
        batches = engine.batches(records.train, _timed(times, "collate", records.collate))
        while len(found) <= options.steps:
            times.clear()
            start = time.perf_counter()
            engine.step(next(batches))
            found.append({**times, "whole": time.perf_counter() - start})
    return found[1:]


@contextmanager
def timed() -> Iterator[Times]:
    """While open, every call of a part adds to its seconds."""
    times: Times = {}
    patches = [
        patch.object(owner, name, _timed(times, part, getattr(owner, name)))
        for part, places in PARTS.items()
        for owner, name in places
    ]
    for one in patches:
        one.start()
    try:
        yield times
    finally:
        for one in patches:
            one.stop()


def _timed(times: Times, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            times[part] = times.get(part, 0.0) + time.perf_counter() - start

    return wrapped


def report(found: dict[str, list[Times]], options: argparse.Namespace) -> str:
    """A line a part: milliseconds and share of the step, the median over steps."""
    rows: dict[str, Callable[[Times], float]] = {part: partial(_of, parts=(part,)) for part in PARTS}
    rows["all else"] = lambda t: t["whole"] - _of(t, tuple(PARTS))
    rows["**around the model**"] = lambda t: t["whole"] - _of(t, MODEL)
    rows["whole step"] = lambda t: t["whole"]
    lines = [[name, *(cell for steps in found.values() for cell in _cells(steps, of))] for name, of in rows.items()]
    columns = ["part", *(cell for name in found for cell in (f"ms, {name}", "share"))]
    setting = f"- {options.batch} expected sentences a step, {options.steps} steps after one that does not count\n\n"
    return heading("Where a logical step's time goes") + setting + table(columns, lines)


def _of(times: Times, parts: Sequence[str]) -> float:
    """Seconds of these parts together; one that was never called took none."""
    return sum(times.get(part, 0.0) for part in parts)


def _cells(steps: Sequence[Times], of: Callable[[Times], float]) -> tuple[str, str]:
    return (
        f"{1000 * statistics.median(of(t) for t in steps):.1f}",
        f"{statistics.median(of(t) / t['whole'] for t in steps):.2%}",
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--batch", type=int, default=2000, help="expected sentences in a logical batch")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()

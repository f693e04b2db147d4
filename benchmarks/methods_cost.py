"""What one step of each method costs: time and memory, private beside ordinary, and beside LoRA.

    python benchmarks/methods_cost.py --write

Gradients are compared with one record at a time before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from agreement import check
from common import heading, load_records, middle_and_range, publish, table
from methods import REMOVED, ROWS, Row, trained_numbers
from step import Workload, interleaved, paired, weigh, weighed_elsewhere, workloads
from variants import Dpft, Ordinary, quiet

SIZES = {"batch": 64, "logical": 800, "random_batches": False, "physical": 64, "logical_rounds": 1}
TYPES = ("float32", "bfloat16")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    # Without those that have no ordinary step: once its mask is paid for, a SparseAdapter's step is like any other's.
    rows = {name: row for name, row in ROWS.items() if row.ordinary_lr is not None}
    rows = {name: row for name, row in rows.items() if not options.only or name.startswith(tuple(options.only))}
    if options.memory_of:
        which = options.memory_of
        loads = [load for dtype in TYPES for load in loads_of(which.split(":")[0], dtype, options)]
        print(json.dumps(weigh(loads, which)))
        return
    parts = [heading("One step of each method: private beside ordinary")]
    for dtype in options.dtype:
        lines = [line for name in rows for line in lines_of(name, rows[name], dtype, options)]
        title = f"\n## Micro-batch of {SIZES['batch']} sentences about the median length, {dtype}\n"
        columns = ["method", "trained numbers", "ms, ordinary", "ms, private", "time, private / ordinary"]
        columns += ["MB above the model, ordinary", "private", "memory, private / ordinary"]
        parts += [title, table(columns, lines)]
    publish("methods-cost", "\n".join(parts), write=options.write)


def lines_of(name: str, row: Row, dtype: str, options: Namespace) -> list[list[str]]:
    """One line of the table."""
    (load,) = loads_of(name, dtype, options)
    print(f"{name}, {dtype}", file=sys.stderr, flush=True)
    _, failed = check(load.task, load.kinds)
    if failed:
        raise SystemExit(f"{name} can't run: {failed}")
    times = interleaved({kind: load.held_to({}, kind) for kind in load.kinds}, load.rounds)
    ordinary, private = (times[kind.name] for kind in load.kinds)
    memory = [weighed_elsewhere(load, kind.name)["above"] for kind in load.kinds]
    trained = trained_numbers([*_removed(name), *row.overrides])
    shown = [f"{1000 * statistics.median(t):.0f}" for t in (ordinary, private)]
    ratio = middle_and_range(paired(private, ordinary))
    return [[name, f"{trained:,}", *shown, ratio, *(f"{m:.0f}" for m in memory), f"{memory[1] / memory[0]:.2f}"]]


def loads_of(name: str, dtype: str, options: Namespace) -> list[Workload]:
    row = ROWS[name]
    records = load_records([*_removed(name), *row.overrides, f"optimizer.lr={row.lr}"])
    sizes: Any = Namespace(**{**vars(options), **SIZES})
    load = workloads(sizes, records, getattr(torch, dtype))[0]
    return [replace(load, key=name, kinds=(Ordinary, Dpft))]


def _removed(name: str) -> tuple[str, ...]:
    return () if "LoRA" in name else REMOVED


def _options(arguments: Sequence[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", help="beginnings of the names of the methods to measure")
    parser.add_argument("--dtype", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/results/")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

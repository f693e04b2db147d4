"""One private step beside the ordinary one and beside Opacus: time, memory, and first of all equal gradients.

    python benchmarks/step.py --random-batches --dtype float32 bfloat16 --write

Nothing is timed before every variant's clipped gradient equals that of one record at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from agreement import DisagreementError, check
from common import Records, heading, load_records, middle_and_range, peak_memory, publish, reset_peak, table
from variants import BASELINES, LOGICAL, MICRO, Task, Variant, quiet

from dpft.engine.microbatch import token_length

Times = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Workload:
    """One table: a logical batch, and who works it off how often."""

    key: str
    title: str
    task: Task
    kinds: tuple[type[Variant], ...]
    rounds: int


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    records = load_records()
    loads = [load for dtype in options.dtype for load in workloads(options, records, getattr(torch, dtype))]
    if options.memory_of:
        print(json.dumps(weigh(loads, options.memory_of)))
        return
    parts = [heading("One step: private beside ordinary")]
    try:
        parts += [section(load, options) for load in loads]
    except DisagreementError as refusal:
        sys.exit(str(refusal))
    publish("step", "\n".join(parts), write=options.write)


def workloads(options: argparse.Namespace, records: Records, dtype: torch.dtype) -> list[Workload]:
    """One micro-batch of records of about equal length and, if asked for, a logical batch in random order."""
    order = np.random.default_rng(0).permutation(len(records.train))
    logical = [records.train[i] for i in order[: options.logical]]
    made = [_micro(options, records, logical, dtype)]
    if options.random_batches:
        made.append(_logical(options, records, logical, dtype))
    return made


def _micro(options: argparse.Namespace, records: Records, logical: list[Any], dtype: torch.dtype) -> Workload:
    """The ``--batch`` records about the median length, as dpft's own cut would put them together."""
    ranked = sorted(logical, key=token_length)
    start = max(0, (len(ranked) - options.batch) // 2)
    examples = ranked[start : start + options.batch]
    longest = token_length(examples[-1])
    task = _task(records, examples, dtype, physical=len(examples), budget=len(examples) * longest)
    title = f"One micro-batch of {len(examples)} records, {longest} tokens at most, {_name(dtype)}"
    return Workload("micro", title, task, MICRO, options.rounds)


def _logical(options: argparse.Namespace, records: Records, logical: list[Any], dtype: torch.dtype) -> Workload:
    budget = records.recipe.train.token_budget
    task = _task(records, logical, dtype, physical=options.physical, budget=budget)
    title = (
        f"One logical batch of {len(logical)} records in random order, {_name(dtype)}: micro-batches of "
        f"{budget} tokens, sorted by length, or of {options.physical} records"
    )
    return Workload("logical", title, task, LOGICAL, options.logical_rounds)


def _task(records: Records, examples: list[Any], dtype: torch.dtype, *, physical: int, budget: int) -> Task:
    return Task(
        recipe=records.recipe,
        source=records.source,
        examples=examples,
        collate=records.collate,
        physical=physical,
        token_budget=budget,
        compute=dtype,
        clip=records.recipe.privacy.clip,
    )


def section(load: Workload, options: argparse.Namespace) -> str:
    """Compare, time and weigh; a heading and a table. A variant that can't run is named with its error."""
    _say(f"{load.title}: comparing gradients")
    differences, failed = check(load.task, load.kinds)
    kinds = [kind for kind in load.kinds if kind.name not in failed]
    _say(f"timing {load.rounds} rounds")
    times = interleaved(replace(load.task, steps=load.rounds + 1), kinds, load.rounds)
    memory = {kind.name: weighed_elsewhere(load, kind.name) for kind in kinds} if options.memory else {}
    parts = [f"\n## {load.title}\n", _results(load, times, memory, differences)]
    parts += [f"\nWithout {name}, which fails: {why}" for name, why in failed.items()]
    return "\n".join(parts)


def interleaved(task: Task, kinds: Sequence[type[Variant]], rounds: int) -> Times:
    """Seconds of each step, the variants in turn in every round, after one round that does not count."""
    variants = [kind(task) for kind in kinds]
    times: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    try:
        for number in range(rounds + 1):
            for variant in variants:
                start = time.perf_counter()
                variant.step()
                if number:
                    times[variant.name].append(time.perf_counter() - start)
    finally:
        for variant in variants:
            variant.close()
    return times


def _results(
    load: Workload, times: Times, memory: Mapping[str, Mapping[str, float]], differences: Mapping[str, float]
) -> str:
    bases = [kind.name for kind in BASELINES if kind.name in times]
    columns = ["variant", "ms a step", "records/s", *(f"time / {base}" for base in bases)]
    columns += ["MB above the model", "peak MB"] if memory else []
    rows = []
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        row = [name, f"{1000 * middle:.1f}", f"{len(load.task.examples) / middle:.0f}"]
        row += [middle_and_range(paired(seconds, times[base])) for base in bases]
        if memory:
            row += [f"{memory[name]['above']:.0f}", f"{memory[name]['peak']:.0f}"]
        rows.append([*row, f"{differences[name]:.0e}"])
    return table([*columns, "gradient error"], rows)


def paired(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    """The ratio within each round.

    >>> paired([2.0, 3.0], [1.0, 2.0])
    [2.0, 1.5]
    """
    return [a / b for a, b in zip(seconds, base, strict=True)]


def weighed_elsewhere(load: Workload, name: str) -> dict[str, float]:
    """Peak memory of one variant in a process of its own, with this command's own options."""
    _say(f"memory of {name}")
    which = f"{load.key}:{_name(load.task.compute)}:{name}"
    command = [sys.executable, *sys.argv, "--memory-of", which]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def weigh(loads: Sequence[Workload], which: str) -> dict[str, float]:
    """MB at the peak of two steps, and how much of it came on top of what the built model held."""
    key, dtype, name = which.split(":")
    load = next(x for x in loads if x.key == key and _name(x.task.compute) == dtype)
    variant = next(kind for kind in load.kinds if kind.name == name)(load.task)
    before = reset_peak()
    variant.step()
    variant.step()
    peak = peak_memory()
    variant.close()
    return {"above": peak - before, "peak": peak}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds over the micro-batch")
    parser.add_argument("--batch", type=int, default=64, help="records in the micro-batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--random-batches", action="store_true", help="also time a whole logical batch")
    parser.add_argument("--logical", type=int, default=800, help="records in the logical batch")
    parser.add_argument("--logical-rounds", type=int, default=5)
    parser.add_argument("--physical", type=int, default=64, help="records in a loader's micro-batch")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the memory out")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/results/")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()

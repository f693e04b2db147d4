"""What the benchmarks share: the recipe's records, the machine in words, tables, peak memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpft.config import Recipe, load_recipe
from dpft.data import Collator, load_text_data, tokenise
from dpft.models.source import ModelSource, load_tokenizer, resolve
from dpft.task import tokenizer_of

QUICKSTART = Path(__file__).resolve().parent.parent / "recipes" / "quickstart.toml"
RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("dpft", "torch", "transformers", "opacus", "numpy")


@dataclass(frozen=True)
class Records:
    """The recipe's records as token ids, and how to pad them."""

    recipe: Recipe
    source: ModelSource
    train: list[Any]
    heldout: list[Any]
    collate: Collator


def load_records(overrides: Sequence[str] = (), path: Path = QUICKSTART) -> Records:
    """The quickstart's records, or another text recipe's, with ``key=value`` overrides of it."""
    recipe = load_recipe(path, overrides)
    source = resolve(recipe.model.source, recipe.model.revision, seed=recipe.seed)
    tokenizer = load_tokenizer(tokenizer_of(recipe.model, source))
    data = load_text_data(recipe.data)
    train = list(tokenise(tokenizer, data.train, recipe.data))
    heldout = list(tokenise(tokenizer, data.heldout, recipe.data))
    return Records(recipe, source, train, heldout, Collator.for_tokenizer(tokenizer))


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


def slug() -> str:
    """The machine, as names of files have it."""
    return re.sub(r"[^a-z0-9]+", "-", machine().lower()).strip("-")


def heading(title: str) -> str:
    """A result file's beginning: machine, versions and the command that makes it again."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return (
        f"# {title}\n\n"
        f"- machine: {machine()} (torch reports {torch.backends.cpu.get_cpu_capability()}), "
        f"{torch.get_num_threads()} threads used, {platform.system()}\n"
        f"- versions: Python {platform.python_version()}, {versions}\n"
        f"- command: `{command}`\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def publish(kind: str, text: str, *, write: bool) -> None:
    """Print ``text``; with ``write`` also put it into ``results/KIND-MACHINE.md``."""
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{kind}-{slug()}.md").write_text(text.rstrip() + "\n")


def middle_and_range(values: Sequence[float], unit: str = "") -> str:
    """The median with the extremes.

    >>> middle_and_range([1.0, 1.25, 2.0], " s")
    '1.25 s (1.00 to 2.00)'
    """
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


def kept(path: Path) -> list[dict[str, Any]]:
    """What finished runs left in a file of one JSON line each; nothing where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path: Path, run: Mapping[str, Any]) -> None:
    """Add a finished run to such a file."""
    with path.open("a") as file:
        file.write(json.dumps(run) + "\n")


def elsewhere(*more: str) -> dict[str, float]:
    """What this very command prints last, as JSON, with ``more`` options in a process of its own: memory is that of one
    thing alone."""
    print(" ".join(more), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *sys.argv, *more], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def reset_peak() -> float:
    """Forget the peak so far, where the system can, and return the memory in use now, in MB.

    Elsewhere the peak so far is returned, and what is above it is a lower bound."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is no memory in use
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> float:
    """Peak resident memory of this process, in MB.

    Linux's own figure where there is one: ``ru_maxrss`` of a child starts at its parent's peak."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _processor() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()

"""Peak memory by the size of the logical batch, and beside it what ``dpft plan`` says beforehand.

    python benchmarks/memory.py --write

Each size in a process of its own: the model is built, then two private steps on so many sentences (drawn with
probability 1) are taken. With ``--write`` also a plot, docs/memory.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from common import elsewhere, heading, load_records, peak_memory, publish, reset_peak, table
from engines import private_engine
from matplotlib.figure import Figure
from variants import quiet

from dpft.cost import estimates

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "memory.png"
MB = 1e6


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    if options.of:
        print(json.dumps(weigh(options.of, options)))
        return
    found = {size: elsewhere("--of", str(size)) for size in options.sizes}
    publish("memory", report(found, options), write=options.write)
    if options.write:
        plot(found).savefig(PICTURE, dpi=150)


def weigh(size: int, options: argparse.Namespace) -> dict[str, float]:
    """MB: the peak of two steps above what the process held with the model built, that and the model's own weights, the
    process's peak, and what was foretold."""
    records = load_records([*options.set, f"privacy.expected_batch={size}"])
    examples = (records.train * (size // len(records.train) + 1))[:size]
    with private_engine(records, batch=size, sample_rate=1.0, steps=2) as engine:
        weights = sum(p.numel() * p.element_size() for p in engine.model.parameters()) / MB
        built = reset_peak()
        for batch in engine.batches(examples, records.collate):
            engine.step(batch)
        peak = peak_memory()
    foretold = estimates(records.recipe, 2)[0].bytes / MB
    return {"above": peak - built, "model and above": weights + peak - built, "peak": peak, "foretold": foretold}


def report(found: Mapping[int, Mapping[str, float]], options: argparse.Namespace) -> str:
    columns = ["sentences a step", "MB above the model", "MB with the model", "foretold", "foretold / measured"]
    lines = [
        [
            f"{size:,}",
            f"{one['above']:.0f}",
            f"{one['model and above']:.0f}",
            f"{one['foretold']:.0f}",
            f"{one['foretold'] / one['model and above']:.2f}",
        ]
        for size, one in found.items()
    ]
    setting = f"- LoRA of rank 4, micro-batches of {load_records(options.set).recipe.train.token_budget} tokens\n\n"
    return heading("Memory by the size of the logical batch") + setting + table(columns, lines)


def plot(found: Mapping[int, Mapping[str, float]]) -> Figure:
    """Measured and foretold, over the logical batch."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    sizes: Sequence[int] = list(found)
    axes.plot(sizes, [one["model and above"] for one in found.values()], "o-", label="measured")
    axes.plot(sizes, [one["foretold"] for one in found.values()], "--", label="dpft plan")
    axes.set(xlabel="sentences in a logical batch", ylabel="MB, model included", xscale="log", ylim=(0, None))
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 64, 512, 4096])
    parser.add_argument("--set", nargs="+", default=[], help="key=value for the quickstart's recipe")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/results/, and the plot")
    parser.add_argument("--of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()

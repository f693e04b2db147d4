"""What the sampler costs for large data sets, measured; and what training costs for large models, reckoned.

    python benchmarks/scale.py --write

The first table times ``poisson_sample`` and weighs it; below it is how fast noise is drawn and added. The second is
``dpft/cost.py`` on the shapes of Llama models, with its constants for a GPU, which are supposed and not measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

import torch
from common import QUICKSTART, heading, peak_memory, publish, reset_peak, table

from dpft.config import Recipe, load_recipe
from dpft.cost import GPU, in_words, work
from dpft.counts import trained_numbers
from dpft.engine.keystream import Keystream
from dpft.engine.noise import GriddedGaussian
from dpft.engine.sampler import poisson_sample
from dpft.shapes import Shape

RECORDS = (10**6, 10**7, 10**8, 10**9)
BATCHES = (2_000, 50_000)
COORDINATES = 20_000_000
SHAPES = {
    "7B (32 blocks of 4,096)": Shape(4096, 32, 32, 11_008, 32_000, 0, 32, gated=True),
    "13B (40 of 5,120)": Shape(5120, 40, 40, 13_824, 32_000, 0, 40, gated=True),
    "34B (48 of 8,192)": Shape(8192, 48, 64, 22_016, 32_000, 0, 8, gated=True),
    "70B (80 of 8,192)": Shape(8192, 80, 64, 28_672, 32_000, 0, 8, gated=True),
}
LENGTH, STEPS, BATCH = 256, 1_000, 2_000
LORA = (
    "method.targets=", "method.alpha=", "method.rank=16", "model.pooling=last", "privacy.examples=1000000",
    "privacy.epochs=", f"privacy.steps={STEPS}", f"privacy.expected_batch={BATCH}", f"data.max_length={LENGTH}",
    "privacy.delta=1e-8", "data.source=csv", "data.path=x.csv",
)  # fmt: skip


class Drawn(NamedTuple):
    """Milliseconds of one sample, the median of some, and MB that it needed at the peak."""

    milliseconds: float
    memory: float


def main() -> None:
    options = _options()
    sampled = {(n, b): sample(n, b, options.repeats) for n in RECORDS for b in BATCHES}
    publish("scale", report(sampled, noise(options.repeats)), write=options.write)


def sample(records: int, batch: int, repeats: int) -> Drawn:
    source, times = Keystream(), []
    before = reset_peak()
    for _ in range(repeats):
        start = time.perf_counter()
        poisson_sample(records, batch / records, source)
        times.append(time.perf_counter() - start)
    return Drawn(1000 * statistics.median(times), peak_memory() - before)


def noise(repeats: int) -> float:
    """Numbers a second, drawn and added to a sum: the median of some."""
    mechanism, source, times = GriddedGaussian(1.0, 1.0, COORDINATES), Keystream(), []
    total = torch.zeros(COORDINATES, dtype=torch.float64)
    for _ in range(repeats):
        start = time.perf_counter()
        mechanism.release(total, mechanism.noise(source))
        times.append(time.perf_counter() - start)
    return COORDINATES / statistics.median(times)


def report(sampled: dict[tuple[int, int], Drawn], normals: float) -> str:
    recipe = load_recipe(QUICKSTART, LORA)
    sizes = ["records", *(f"{what}, batch {b:,}" for b in BATCHES for what in ("ms", "MB"))]
    rows = [
        [f"{n:,}", *(cell for b in BATCHES for cell in (f"{sampled[n, b][0]:.1f}", f"{sampled[n, b][1]:.1f}"))]
        for n in RECORDS
    ]
    columns = [
        "model",
        "weights",
        "trained by LoRA r=16",
        "one step",
        f"{STEPS:,} steps",
        "GB, in float32",
        "in bfloat16",
        "recomputed: one step",
        "GB, in bfloat16",
    ]
    lines = [_line(name, shape, recipe) for name, shape in SHAPES.items()]
    return (
        heading("Scale") + f"\n## Drawing a Poisson sample\n\n{table(sizes, rows)}\n\n"
        f"Noise: {normals:.2g} numbers a second, drawn and added to a sum of {COORDINATES:,}\n\n"
        "## Large models, reckoned\n\n"
        f"- {BATCH:,} records of {LENGTH} tokens a step, LoRA on query and value, micro-batches of "
        f"{recipe.train.token_budget} tokens, no cache; the last two columns with activation checkpointing\n"
        f"- supposed of {GPU.name}: {GPU.bfloat16:.3g} operations a second in bfloat16; a model larger than one card's "
        "memory needs to be split, which dpft does not do by itself\n\n" + table(columns, lines)
    )


def _line(name: str, shape: Shape, recipe: Recipe) -> list[str]:
    trained = trained_numbers(recipe, shape)
    found = work(recipe, shape, STEPS, trained)
    seconds = found.on(GPU, "auto").seconds
    wide, again = (_train(recipe, **change) for change in ({"precision": "float32"}, {"recompute": True}))
    recomputed = work(again, shape, STEPS, trained)
    return [
        name,
        f"{shape.weights / 1e9:.1f}e9",
        f"{trained:,}",
        in_words(seconds / STEPS),
        in_words(seconds),
        f"{work(wide, shape, STEPS, trained).bytes / 1e9:.0f}",
        f"{found.bytes / 1e9:.0f}",
        in_words(recomputed.on(GPU, "auto").seconds / STEPS),
        f"{recomputed.bytes / 1e9:.0f}",
    ]


def _train(recipe: Recipe, **change: object) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=change)})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()

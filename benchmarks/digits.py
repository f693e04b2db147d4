"""A small vision transformer on scikit-learn's digits, private and not: from scratch, and from synthetic digits.

    python benchmarks/synthetic_digits.py models/vit-synthetic-digits
    python benchmarks/digits.py --seeds 3 --write

Private runs are runs of recipes/digits.toml by ``dpft.run``, with the overrides below. "Not private" is the same
model, records, optimiser and steps without clipping and noise. All figures are accuracies on the 360 held-out images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RESULTS, heading, table
from safetensors.torch import load_file
from torch import Tensor, nn

from dpft import PrivateEngine
from dpft.config import Recipe, load_recipe
from dpft.data import public_id
from dpft.engine.plan import plan_from
from dpft.models.source import resolve
from dpft.run import build_model, run
from dpft.schedule import build_optimizer, set_rates
from dpft.task import task_of

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "digits.toml"
_FULL = ("method.name=full", "optimizer.lr=2e-3", "optimizer.head_lr=5e-2")


@dataclass(frozen=True)
class Row:
    """One line of the table: what trains, and how it differs from the recipe."""

    name: str
    overrides: tuple[str, ...]

    def recipe(self, pretrained: Path, seed: int) -> Recipe:
        told = [o.replace("PRETRAINED", str(pretrained)) for o in self.overrides]
        return load_recipe(RECIPE, [*told, f"seed={seed}", "evaluate.public=true"])


_SOURCE = "model.source=PRETRAINED"
ROWS = (
    Row("ViT from scratch, full", ()),
    Row("ViT pretrained on synthetic digits, head", (_SOURCE, "method.name=head", "optimizer.head_lr=1e-1")),
    Row(
        "ViT pretrained on synthetic digits, LoRA of rank 4 + head",
        (_SOURCE, "method.name=lora", "method.rank=4", "optimizer.lr=5e-3", "optimizer.head_lr=5e-2"),
    ),
    Row("ViT pretrained on synthetic digits, full", (_SOURCE, *_FULL)),
)


@dataclass(frozen=True)
class Tensors:
    """A recipe's images as the model reads them."""

    x: Tensor  # [N, 1, 8, 8]
    y: Tensor  # [N]
    held_x: Tensor
    held_y: Tensor

    def score(self, model: nn.Module) -> float:
        """Accuracy on the held-out images."""
        with torch.no_grad():
            return float((model(self.held_x).argmax(dim=1) == self.held_y).double().mean())


def tensors(recipe: Recipe) -> Tensors:
    """Read, split and normalise as a run does."""
    source = resolve(recipe.model.source, seed=recipe.seed)
    task = task_of(recipe.data, source, build_model(recipe, source)[0])
    data = task.load()
    train, held = (task.collate(task.examples(records)) for records in (data.train, data.heldout))
    return Tensors(train["pixel_values"], train["labels"], held["pixel_values"], held["labels"])


def ordinary(recipe: Recipe) -> float:
    """The run's model and optimiser on whole batches in random order, without clipping and noise."""
    images = tensors(recipe)
    model, _ = build_model(recipe, resolve(recipe.model.source, seed=recipe.seed))
    optimizer = build_optimizer(recipe.optimizer, model, model.head)
    steps, size = plan_from(recipe.privacy, recipe.data.unit).steps, round(recipe.privacy.expected_batch)
    generator = torch.Generator().manual_seed(recipe.seed)
    for step in range(steps):
        at = torch.randperm(len(images.y), generator=generator)[:size]
        set_rates(optimizer, recipe.optimizer, step, steps)
        optimizer.zero_grad()
        F.cross_entropy(model(images.x[at]), images.y[at]).backward()
        optimizer.step()
    return images.score(model.eval())


def private(recipe: Recipe) -> float:
    """The run itself, in a folder that goes again."""
    with tempfile.TemporaryDirectory() as folder:
        score = run(recipe, Path(folder) / "run").scores["accuracy"]
    assert score is not None
    return score


def linear(recipe: Recipe, *, noisy: bool) -> float:
    """Logistic regression on the 64 pixels: what the transformer has to be better than."""
    images = tensors(recipe)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    made = plan_from(recipe.privacy, recipe.data.unit)
    records = [{"x": x, "labels": int(y)} for x, y in zip(images.x, images.y, strict=True)]
    collate = torch.utils.data.default_collate
    if not noisy:
        for _ in range(made.steps):
            optimizer.zero_grad()
            F.cross_entropy(model(images.x), images.y).backward()
            optimizer.step()
        return images.score(model)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.jsonl"
        with PrivateEngine(
            model, optimizer, made, loss=_loss, ledger=ledger, dataset=public_id(recipe.data), token_budget=65_536
        ) as engine:
            for batch in engine.batches(records, collate):
                engine.step(batch)
    return images.score(model)


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")


def untrained(pretrained: Path) -> float:
    """The pretrained model with the head it was pretrained with, which no digit of this data set has touched."""
    recipe = ROWS[1].recipe(pretrained, 0)
    model, _ = build_model(recipe, resolve(recipe.model.source))
    for name, value in load_file(pretrained / "head.safetensors").items():
        model.head.get_parameter(name).data.copy_(value)
    model.feature_norm = None
    return tensors(recipe).score(model.eval())


def percent(scores: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread} %"


def measure(pretrained: Path, seeds: int) -> str:
    """The whole table."""
    rows = []
    for row in ROWS:
        recipes = [row.recipe(pretrained, seed) for seed in range(seeds)]
        start = time.perf_counter()
        noisy = [private(recipe) for recipe in recipes]
        seconds = (time.perf_counter() - start) / seeds
        rows.append([row.name, percent(noisy), percent([ordinary(recipe) for recipe in recipes]), f"{seconds:.0f} s"])
        print(" | ".join(rows[-1]), flush=True)
    recipe = ROWS[0].recipe(pretrained, 0)
    noisy = [linear(recipe, noisy=True) for _ in range(seeds)]
    rows.append(["logistic regression on the 64 pixels", percent(noisy), percent([linear(recipe, noisy=False)]), ""])
    rows.append(["pretrained on synthetic digits, no digit of these seen", percent([untrained(pretrained)]), "", ""])
    made = plan_from(recipe.privacy, recipe.data.unit)
    words = (
        f"\nscikit-learn's 1,797 digits: {recipe.privacy.examples} train, 360 are held out by a hash of each image. "
        f"Epsilon {made.epsilon.upper:.3f} at delta {made.delta:g} for each image (zero-out), {made.steps} steps, "
        f"expected batch {recipe.privacy.expected_batch:g}, noise multiplier {made.noise_multiplier:.3f}. "
        f"{seeds} seeds, mean and standard deviation. Settings were chosen on these same held-out images, for private "
        "and ordinary training alike, and the choice is not in the epsilon: the data set is public.\n\n"
    )
    columns = ["", "private", "not private", "time of a private run"]
    return heading("Digits: private and ordinary accuracy") + words + table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="private and ordinary accuracy on scikit-learn's digits")
    parser.add_argument("--pretrained", type=Path, default=Path("models/vit-synthetic-digits"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="also write results/digits.md")
    options = parser.parse_args()
    if not (options.pretrained / "config.json").is_file():
        parser.error(
            f"no model in {options.pretrained}: run python benchmarks/synthetic_digits.py {options.pretrained}"
        )
    text = measure(options.pretrained, options.seeds)
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "digits.md").write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()

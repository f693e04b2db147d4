"""What privacy costs the quickstart in accuracy: private runs beside non-private ones on the same split.

    python benchmarks/quickstart_baselines.py --seeds 3 --write

The non-private run is the recipe without clipping and noise: same model, same added parameters, batch size,
rates and number of steps, each batch the next slice of a shuffled epoch.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Records, heading, load_records, publish, table
from torch import Tensor, nn

from dpft.config import Recipe
from dpft.engine.microbatch import cut, token_length
from dpft.evaluate import scores
from dpft.models.classifier import TextClassifier
from dpft.models.losses import classification_loss
from dpft.models.precision import attention_for, compute_dtype, products_in
from dpft.per_sample.batches import to_device
from dpft.run import build_model, run
from dpft.schedule import build_optimizer, set_rates

_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as dpft.run chooses
_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the linear probe, times |W|^2 / 2, on the mean loss
_FOLDS = 5


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    records = load_records([f"privacy.epochs={options.epochs}"] if options.epochs else [])
    if not records.heldout or not records.recipe.evaluate.public:
        sys.exit("Expected a recipe with public held-out records: their accuracy is printed.")
    _say("majority class and linear probe")
    scores = {"majority class": [majority(records)], "linear probe, not private": [linear_probe(records)]}
    scores["fine-tuned, not private"] = _each("not private", records, options.seeds, ordinary_run)
    private = f"fine-tuned by dpft, epsilon {records.recipe.privacy.epsilon:g}"
    scores[private] = _each("private", records, options.seeds, private_run)
    publish("quickstart", report(records, scores), write=options.write)


def report(records: Records, scores: dict[str, list[float]]) -> str:
    """The heading, what ran, and the table."""
    recipe = records.recipe
    setting = (
        f"- records: {len(records.train)} to train, {len(records.heldout)} held out; "
        f"{recipe.privacy.epochs:g} epochs, {steps_of(records)} steps of {recipe.privacy.expected_batch:g} "
        f"records, matrix products in {str(compute_of(recipe)).removeprefix('torch.')}\n"
        f"- each private run: epsilon {recipe.privacy.epsilon:g} at delta {recipe.privacy.delta:g}\n"
    )
    columns = ["model", "accuracy on held-out records (%)", "each seed"]
    rows = [[name, mean_and_sd(values), _list(values)] for name, values in scores.items()]
    return heading("Quickstart: accuracy with and without privacy") + setting + "\n" + table(columns, rows)


def majority(records: Records) -> float:
    """Accuracy of always saying the class that is most frequent in training."""
    labels = [example["label"] for example in records.train]
    most = max(set(labels), key=labels.count)
    right = sum(int(example["label"] == most) for example in records.heldout)
    return right / len(records.heldout)


def private_run(records: Records, seed: int) -> float:
    """The real thing, with fresh noise, into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        score = run(_seeded(records.recipe, seed), Path(folder) / "run").scores["accuracy"]
    assert score is not None  # main asked for public held-out records
    return score


def ordinary_run(records: Records, seed: int) -> float:
    """The recipe's fine-tuning without clipping and noise."""
    recipe = _seeded(records.recipe, seed)
    model = _model(recipe, records)
    optimizer = build_optimizer(recipe.optimizer, model, model.head)
    steps = steps_of(records)
    for step, drawn in zip(range(steps), shuffled(records, seed), strict=False):
        set_rates(optimizer, recipe.optimizer, step, steps)
        optimizer.zero_grad()
        _backward(model, drawn, records)
        optimizer.step()
    model.eval()
    return scores(model, records.heldout, records.collate, recipe.train.token_budget, compute_of(recipe))["accuracy"]


def steps_of(records: Records) -> int:
    """As many steps as the plan of the private run has."""
    privacy = records.recipe.privacy
    if privacy.steps is not None:
        return privacy.steps
    assert privacy.epochs is not None  # the recipe's schema demands one of the two
    return math.ceil(privacy.epochs * len(records.train) / privacy.expected_batch - 1e-9)


def shuffled(records: Records, seed: int) -> Iterator[list[Any]]:
    """Batches of the expected size without end, each epoch in an order of its own."""
    size = round(records.recipe.privacy.expected_batch)
    generator = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += generator.permutation(len(records.train)).tolist()
        yield [records.train[i] for i in waiting[:size]]
        waiting = waiting[size:]


def _backward(model: TextClassifier, drawn: list[Any], records: Records) -> None:
    """The gradient of the batch's mean loss, added up over micro-batches."""
    lengths = [token_length(e) for e in drawn]
    for piece in cut(range(len(drawn)), lengths, records.recipe.train.token_budget):
        batch = to_device(records.collate([drawn[i] for i in piece]), _DEVICE)
        with products_in(compute_of(records.recipe), _DEVICE):
            losses = classification_loss(model, batch)
        (losses.sum() / len(drawn)).backward()  # type: ignore[no-untyped-call]


def linear_probe(records: Records) -> float:
    """Logistic regression on the frozen encoder's features, its penalty chosen by cross-validation."""
    model = _model(records.recipe, records)  # LoRA starts at zero: these are the encoder's own features
    budget = records.recipe.train.token_budget
    x, y = features(model, records.train, records.collate, budget)
    folds = torch.randint(_FOLDS, (len(y),), generator=torch.Generator().manual_seed(0))

    def validated(penalty: float) -> float:
        right = 0
        for fold in range(_FOLDS):
            inside, outside = folds != fold, folds == fold
            right += _right(fit_logistic(x[inside], y[inside], penalty), x[outside], y[outside])
        return right / len(y)

    probe = fit_logistic(x, y, max(_PENALTIES, key=validated))
    held = features(model, records.heldout, records.collate, budget)
    return _right(probe, *held) / len(records.heldout)


@torch.no_grad()
def features(model: TextClassifier, examples: Sequence[Any], collate: Any, budget: int) -> tuple[Tensor, Tensor]:
    """Pooled features [N, d] in float64 and labels [N], in the order of the cut."""
    rows, labels = [], []
    for piece in cut(range(len(examples)), [token_length(e) for e in examples], budget):
        batch = to_device(collate([examples[i] for i in piece]), _DEVICE)
        labels.append(batch.pop("labels").cpu())
        rows.append(model.features(**batch).double().cpu())
    return torch.cat(rows), torch.cat(labels)


def fit_logistic(x: Tensor, y: Tensor, penalty: float) -> nn.Linear:
    """The minimiser of mean cross-entropy + penalty |W|^2 / 2, from zero by L-BFGS."""
    layer = nn.Linear(x.shape[1], int(y.max()) + 1, dtype=x.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y) + penalty * layer.weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return layer


def _right(layer: nn.Linear, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((layer(x).argmax(dim=1) == y).sum())


def mean_and_sd(values: Sequence[float]) -> str:
    """Percent, with the sample's standard deviation where there are several.

    >>> mean_and_sd([0.5]), mean_and_sd([0.5, 0.6])
    ('50.0', '55.0 ± 7.1')
    """
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def compute_of(recipe: Recipe) -> torch.dtype:
    """The type that the recipe's matrix products run in on this machine."""
    return compute_dtype(recipe.train.precision, _DEVICE)


def _model(recipe: Recipe, records: Records) -> TextClassifier:
    """The model as ``dpft.run`` makes it."""
    model, _ = build_model(recipe, records.source, attention_for(compute_of(recipe), _DEVICE))
    return model.to(_DEVICE)


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"seed": seed})


def _each(what: str, records: Records, seeds: int, score: Any) -> list[float]:
    values = []
    for seed in range(seeds):
        values.append(score(records, seed))
        _say(f"{what}, seed {seed}: {values[-1]:.4f}")
    return values


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * v:.2f}" for v in values)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--epochs", type=float, help="fewer epochs than the recipe's, for a short test")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Why RAFT scales its coefficients: the gradient's share of each, and what private training makes of both forms.

    python benchmarks/raft_scaling.py --write
    python benchmarks/raft_scaling.py --only raw --rates 3e-4 --write    # one form at one more learning rate

Rational activations alone (and the head) on the quickstart's encoder and sentences, trained privately with raw
coefficients of powers of x, as published, and with scaled ones, at several learning rates. The sentences are public,
and nothing is released. Each form at each rate, once trained, is a line of ``results/raft_scaling.jsonl``; with
``--write`` what stands there is not trained again, and the table is made of all of it.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import RESULTS, Records, heading, keep, kept, load_records, table
from compacter_init import gradient
from matplotlib.figure import Figure
from methods import REMOVED
from torch import nn
from variants import quiet
from whole_runs import mean_and_sd

from dpft.adapter import load
from dpft.config import Recipe
from dpft.models.classifier import Classifier, TextClassifier
from dpft.models.source import load_encoder
from dpft.peft import RAFT, attach
from dpft.peft.raft import Rational
from dpft.report.activations import learned_functions
from dpft.run import run

_RUNS = RESULTS / "raft_scaling.jsonl"
_PICTURE = Path(__file__).resolve().parent.parent / "docs" / "raft.png"
_HEAD_STD = 0.02  # as transformers draws heads; at dpft's own zero no gradient passes through it at first

FORMS = {
    "scaled": RAFT(),
    "raw": RAFT(scaling="none"),
    "raw, published tails": RAFT(scaling="none", tails="rational"),
}
Shares = dict[str, float]
"""Coefficient -> norm of its part of the mean clipped gradient, over all layers."""


@dataclass(frozen=True)
class Trained:
    """Accuracies of a form at one learning rate, one a seed, and how far the first run's functions have moved."""

    form: str
    lr: float
    epochs: float
    scores: list[float]
    moved: float


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    records = load_records([])
    signals = {form: shares(records, method, options) for form, method in FORMS.items()}
    found = {(one.form, one.lr): one for one in (_kept(options) if options.write else ())}
    for form in (form for form in FORMS if not options.only or form in options.only):
        for lr in (lr for lr in options.rates if (form, lr) not in found):
            found[form, lr] = trained(form, lr, options)
            print(found[form, lr], file=sys.stderr, flush=True)
            if options.write:
                keep(_RUNS, asdict(found[form, lr]))
    text = report(signals, found, options)
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "raft_scaling.md").write_text(text.rstrip() + "\n")
    if options.write and found:
        picture(found, options).savefig(_PICTURE, dpi=150)


def _kept(options: Namespace) -> list[Trained]:
    """Those of as many epochs and seeds."""
    made = [Trained(**values) for values in kept(_RUNS)]
    return [one for one in made if (one.epochs, len(one.scores)) == (options.epochs, options.seeds)]


def shares(records: Records, method: RAFT, options: Namespace) -> Shares:
    """At the start, on one batch."""
    recipe = records.recipe
    torch.manual_seed(0)
    model = TextClassifier(load_encoder(records.source), 2, recipe.model.pooling, recipe.model.feature_norm)
    nn.init.normal_(model.head.weight, std=_HEAD_STD)
    attach(model, method, train=("head",))
    squares: Shares = {}
    for name, g in gradient(model, records, records.train[: options.batch], recipe.privacy.clip).items():
        part = name.rpartition(".")[2]
        if part in ("numerator", "denominator"):
            for j, value in enumerate(g.double().tolist()):
                key = f"a{j}" if part == "numerator" else f"b{j + 1}"
                squares[key] = squares.get(key, 0.0) + (value / options.batch) ** 2
    return {key: math.sqrt(total) for key, total in squares.items()}


def trained(form: str, lr: float, options: Namespace) -> Trained:
    runs = [private_run(_recipe(form, lr, options.epochs, seed)) for seed in range(options.seeds)]
    return Trained(form, lr, options.epochs, [score for score, _ in runs], moved(runs[0][1]))


def _recipe(form: str, lr: float, epochs: float, seed: int) -> Recipe:
    fields = FORMS[form]
    records = load_records(
        [
            *REMOVED, 'method.name="raft"', f'method.scaling="{fields.scaling}"', f'method.tails="{fields.tails}"',
            f"optimizer.lr={lr}", "optimizer.head_lr=1e-2",
            f"privacy.epochs={epochs}", "privacy.expected_batch=512",
        ]
    )  # fmt: skip
    return records.recipe.model_copy(update={"seed": seed})


def private_run(recipe: Recipe) -> tuple[float, Classifier]:
    """Accuracy and the model of a private training, with fresh noise, whose folder is thrown away."""
    with tempfile.TemporaryDirectory() as name:
        score = run(recipe, Path(name) / "run").scores["accuracy"]
        assert score is not None  # the reviews are public
        return score, load(Path(name) / "run" / "adapter")


def moved(model: nn.Module) -> float:
    """How far the functions are from those they replaced, on [-3, 3]: the largest distance, averaged over layers."""
    x = torch.linspace(-3, 3, 601)[None]
    layers = [m for m in model.modules() if isinstance(m, Rational)]
    with torch.no_grad():
        return sum(float((m(x) - m.base_layer(x)).abs().max()) for m in layers) / len(layers)


def report(signals: Mapping[str, Shares], found: Mapping[tuple[str, float], Trained], options: Namespace) -> str:
    forms = ("scaled", "raw")
    largest = {form: max(signals[form].values()) for form in forms}
    lines = [[key, *(f"{signals[form][key] / largest[form]:.2g}" for form in forms)] for key in sorted(signals["raw"])]
    spread = [f"{largest[form] / min(v for v in signals[form].values() if v):.0f}" for form in forms]
    lines.append(["largest over smallest", *spread])
    rates, trained_forms = sorted({lr for _, lr in found}), {form for form, _ in found}
    rows = [[form, *(_cell(found.get((form, lr))) for lr in rates)] for form in FORMS if form in trained_forms]
    accuracy = (
        f"- accuracy: {options.epochs:g} epochs, 512 expected sentences a step, epsilon 6.7 at delta 1e-05, "
        f"{options.seeds} seeds; behind it how far the functions have moved on [-3, 3]\n"
    )
    columns = ["coefficients", *(f"{lr:g}" for lr in rates)]
    return (
        heading("RAFT's coefficients, scaled and raw")
        + f"- 6 layers, degrees 5 and 4, fitted on [-6, 6]; gradient of {options.batch} sentences, clip 1, head drawn "
        f"at standard deviation {_HEAD_STD}\n" + (accuracy if found else "") + "\n"
        "Norm of each coefficient's part of the mean clipped gradient, over that of the largest:\n\n"
        + table(["coefficient", *forms], lines)
        + (f"\n\nPrivate accuracy (%) by learning rate:\n\n{table(columns, rows)}" if found else "")
    )


def _cell(one: Trained | None) -> str:
    return "" if one is None else f"{mean_and_sd(one.scores)}; {one.moved:.2g}"


def picture(found: Mapping[tuple[str, float], Trained], options: Namespace) -> Figure:
    """The functions that a run learns in the scaled form, at the rate that was best for it."""
    best = max((t for (form, _), t in found.items() if form == "scaled"), key=lambda t: sum(t.scores))
    return learned_functions(private_run(_recipe(best.form, best.lr, options.epochs, 0))[1])


def _options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-3, 3e-3, 1e-2], help="none: the gradients alone")
    parser.add_argument("--only", nargs="+", choices=list(FORMS), help="the forms to train")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=256, help="sentences that the gradient is measured on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the table and the picture into the repository")
    return parser.parse_args()


if __name__ == "__main__":
    main()

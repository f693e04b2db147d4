"""Why Compacter has a start of its own here: how much of the clipped gradient reaches each group of its parameters.

    python benchmarks/compacter_init.py --write

The three starts of ``Compacter(init=...)`` on the quickstart's encoder and sentences, same shape otherwise. Noise is
drawn from torch's generator, which is good enough to measure by: these sentences are public, and nothing is released.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, Records, heading, load_records, table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from dpft.engine.clipping import clipped_sum
from dpft.engine.microbatch import cut, token_length
from dpft.models.classifier import TextClassifier
from dpft.models.losses import classification_loss
from dpft.models.source import load_encoder
from dpft.peft import Compacter, attach
from dpft.per_sample import capture

STARTS = ("published", "private", "yu")
GROUPS = ("factors s, t", "rule", "biases", "norms", "head")
_COLOURS = {"published": "#b2182b", "private": "#2166ac", "yu": "#999999"}
_PICTURE = Path(__file__).resolve().parent.parent / "docs" / "compacter_init.png"
_HEAD_STD = 0.02  # as transformers draws heads; at dpft's own zero no gradient passes through it at first

Norms = dict[str, float]
"""Group -> norm of its part of the mean clipped gradient."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    records = load_records([f"data.max_length={options.max_length}", "optimizer.lr=1e-3", "optimizer.head_lr=1e-2"])
    sizes: dict[str, int] = {}
    signals: dict[str, list[Norms]] = {}
    for start in STARTS:
        print(start, file=sys.stderr, flush=True)
        model = build(records, start)
        sizes = group_sizes(model)
        signals[start] = list(train(model, records, options))
    noise = {g: options.sigma * records.recipe.privacy.clip / options.batch * math.sqrt(n) for g, n in sizes.items()}
    text = report(signals, noise, sizes, records, options)
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "compacter_init.md").write_text(text.rstrip() + "\n")
        picture(signals, noise, options).savefig(_PICTURE, dpi=150)


def build(records: Records, start: str) -> TextClassifier:
    """The encoder with Compacter (n = 4, reduction 32, norms trained too) and a head that is not zero."""
    torch.manual_seed(0)
    recipe = records.recipe
    model = TextClassifier(load_encoder(records.source), 2, recipe.model.pooling, recipe.model.feature_norm)
    nn.init.normal_(model.head.weight, std=_HEAD_STD)
    return attach(model, Compacter(init=start, norms=True), train=("head",))  # type: ignore[arg-type]


def group_of(name: str) -> str:
    """The group that a trainable parameter belongs to.

    >>> [group_of(n) for n in ("a.adapter_up.t", "a.adapter_up.rule", "a.adapter_up.bias", "a.LayerNorm.bias")]
    ['factors s, t', 'rule', 'biases', 'norms']
    """
    if name.startswith("head."):
        return "head"
    if ".adapter_" not in name:
        return "norms"
    return {"s": "factors s, t", "t": "factors s, t", "rule": "rule", "bias": "biases"}[name.rpartition(".")[2]]


def group_sizes(model: nn.Module) -> dict[str, int]:
    sizes = dict.fromkeys(GROUPS, 0)
    for name, p in model.named_parameters():
        if p.requires_grad:
            sizes[group_of(name)] += p.numel()
    return sizes


def train(model: TextClassifier, records: Records, options: argparse.Namespace) -> Iterator[Norms]:
    """Noisy Adam steps at the recipe's rates; before each, and after the last, the norms of a batch's gradient."""
    clip, rates = records.recipe.privacy.clip, records.recipe.optimizer
    noise = torch.Generator().manual_seed(1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    head = list(model.head.parameters())
    added = [p for p in trained.values() if all(p is not h for h in head)]
    optimizer = torch.optim.Adam([{"params": added}, {"params": head, "lr": rates.head_lr}], lr=rates.lr)
    order = np.random.default_rng(0).permutation(len(records.train))
    for step in range(options.steps + 1):
        chosen = [
            records.train[i] for i in order.take(range(step * options.batch, (step + 1) * options.batch), mode="wrap")
        ]
        mean = {name: g / options.batch for name, g in gradient(model, records, chosen, clip).items()}
        yield norms(mean)
        for name, p in trained.items():
            p.grad = mean[name] + options.sigma * clip / options.batch * torch.randn(p.shape, generator=noise)
        optimizer.step()
        optimizer.zero_grad()


def gradient(model: nn.Module, records: Records, examples: list[Any], clip: float) -> dict[str, Tensor]:
    """The sum of the clipped per-example gradients."""
    total: dict[str, Tensor] = {}
    for piece in cut(range(len(examples)), [token_length(e) for e in examples], records.recipe.train.token_budget):
        with capture(model) as grads:
            classification_loss(model, records.collate([examples[i] for i in piece])).sum().backward()
        for name, part in clipped_sum(dict(grads), clip)[0].items():
            g = part.dense()[0]
            total[name] = total[name] + g if name in total else g
    return total


def norms(gradients: Mapping[str, Tensor]) -> Norms:
    squares = dict.fromkeys(GROUPS, 0.0)
    for name, g in gradients.items():
        squares[group_of(name)] += float(g.double().square().sum())
    return {group: math.sqrt(sq) for group, sq in squares.items()}


def shares(signal: Norms) -> Norms:
    """Each group's norm over that of the whole gradient.

    >>> shares({"rule": 3.0, "head": 4.0})
    {'rule': 0.6, 'head': 0.8}
    """
    whole = math.hypot(*signal.values())
    return {group: norm / whole for group, norm in signal.items()}


def report(
    signals: Mapping[str, list[Norms]],
    noise: Norms,
    sizes: Mapping[str, int],
    records: Records,
    options: argparse.Namespace,
) -> str:
    rows = []
    for start, steps in signals.items():
        for group in GROUPS:
            row = [start, group, str(sizes[group])]
            for signal in (steps[0], steps[-1]):
                row += [_number(shares(signal)[group]), _number(signal[group] / noise[group])]
            rows.append(row)
    columns = ["start", "group", "numbers", "share at the start", "signal / noise"]
    columns += [f"share after {options.steps} steps", "signal / noise"]
    return (
        f"{heading('Starts of Compacter under noise')}"
        f"- setting: 6-layer encoder, Compacter n = 4, reduction 32, one shared rule; batches of {options.batch} of "
        f"{len(records.train)} sentences, clip {records.recipe.privacy.clip:g}, sigma {options.sigma:g}; Adam, rates "
        f"{records.recipe.optimizer.lr:g} and {records.recipe.optimizer.head_lr:g} (head); head drawn at standard "
        f"deviation {_HEAD_STD}\n\n"
        f"{table(columns, rows)}\n\n"
        "Share: norm of the group's part of the mean clipped gradient over that of the whole. Signal / noise: the same "
        "norm over the noise's, sigma * clip / batch * sqrt(numbers); it grows in proportion to batch / sigma.\n"
    )


def _number(x: float) -> str:
    """Two digits that count.

    >>> [_number(x) for x in (0.0, 0.123, 1.6e-7)]
    ['0', '0.12', '1.6e-07']
    """
    return f"{x:.2g}"


def picture(signals: Mapping[str, list[Norms]], noise: Norms, options: argparse.Namespace) -> Figure:
    """Left: shares at the start. Right: the factors' signal over their noise, step by step."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, signals)
    for start, steps in signals.items():
        right.plot([s["factors s, t"] / noise["factors s, t"] for s in steps], color=_COLOURS[start], label=start, lw=2)
    right.axhline(1, color="black", lw=0.8, ls=":")
    right.set(
        yscale="log",
        xlabel="steps taken",
        ylabel="signal / noise (norms)",
        title=f"Factors s, t: gradient over noise\n(sigma {options.sigma:g}, batch {options.batch})",
    )
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = right.get_legend_handles_labels()
    words = [f"start: {label}" for label in labels]
    figure.legend(handles, words, loc="outside lower center", ncols=len(words), frameon=False)
    return figure


def _bars(axes: Axes, signals: Mapping[str, list[Norms]]) -> None:
    floor, width = 1e-9, 0.28
    for i, (start, steps) in enumerate(signals.items()):
        for j, share in enumerate(shares(steps[0]).values()):
            x = j + (i - 1) * width
            if share:
                axes.bar(x, share, width, color=_COLOURS[start])
            axes.text(x, max(share, floor) * 1.3, f"{share:.1g}", ha="center", fontsize=7)
    axes.set_xticks(range(len(GROUPS)), GROUPS)
    axes.set(
        yscale="log",
        ylim=(floor, 10),
        ylabel="share of the gradient's norm",
        title="Mean clipped gradient at the start:\nshare of each group",
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=200, help="sentences a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--sigma", type=float, default=0.25, help="noise over the clip; 0.25 at 200 is 1 at 800")
    parser.add_argument("--max-length", type=int, default=16, help="tokens kept of a sentence")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="write results/compacter_init.md and the picture in docs/")
    return parser.parse_args()


if __name__ == "__main__":
    main()

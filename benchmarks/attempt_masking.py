"""Why ATTEMPT's maximum over a text leaves padding out here: otherwise one record moves the gradients of the others.

    python benchmarks/attempt_masking.py --write

Equally long sentences in one batch, so that none is padded; then one longer sentence joins them and all are. DP-SGD's
noise is made for what the joining sentence adds itself, a gradient of norm at most the clip. With padding in the
maximum (as in the published code) the clipped gradients of all others change as well. In float64, so that what is zero
shows as such. A second table: how much of the gradient reaches the network that attends, by the softmax's temperature.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from common import RESULTS, Records, heading, load_records, table
from torch import Tensor, nn

from dpft.engine.clipping import clipped_sum
from dpft.engine.preflight import preflight
from dpft.errors import PrivacyError
from dpft.models.classifier import TextClassifier
from dpft.models.losses import classification_loss
from dpft.models.source import load_encoder
from dpft.peft import Attempt, attach
from dpft.peft.attempt import MixedPrompt
from dpft.per_sample import capture

_HEAD_STD = 0.02  # as transformers draws heads; at dpft's own zero no gradient passes through it at first
_GROUPS = {"prompt": "P_new", "down.weight": "W_down, W_up", "up.weight": "W_down, W_up"}


class WithPadding(MixedPrompt):
    """The published maximum: over all of the row."""

    def summary(self, embeds: Tensor, mask: Tensor) -> Tensor:
        return embeds.amax(dim=1)


@dataclass(frozen=True)
class Moved:
    """What one longer record does to the ``others`` of its batch: to their attention's weights (largest change), to the
    gradient of one (relative: median and largest), and to the sum of their clipped gradients, in clips."""

    weights: float
    median: float
    largest: float
    clips: float


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    records = load_records()
    alike, longer = chosen(records, options)
    rows = []
    for temperature in (None, options.temperature):
        for padding in (True, False):
            print(f"temperature {temperature}, padding {padding}", file=sys.stderr, flush=True)
            model = build(records, options, temperature, padding=padding)
            found = moved(model, records, alike, longer)
            figures = (found.weights, found.median, found.largest, found.clips)
            passes = "yes" if _passes(model, records, alike, longer) else "no"
            name = "published" if padding else "here"
            rows.append([name, _words(part_of(model).temperature), *map(_number, figures), passes])
    text = report(rows, signals(records, options), records, options)
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "attempt_masking.md").write_text(text.rstrip() + "\n")


def chosen(records: Records, options: argparse.Namespace) -> tuple[list[Any], Any]:
    """Sentences of one length, and one that is longer."""
    of_length = defaultdict(list)
    for example in records.train:
        of_length[len(example["input_ids"])].append(example)
    return of_length[options.tokens][: options.others], of_length[2 * options.tokens][0]


def build(
    records: Records, options: argparse.Namespace, temperature: float | None, *, padding: bool, moved: bool = True
) -> TextClassifier:
    """The encoder with ATTEMPT and a head that is not zero; ``moved`` off the start, as a few steps do."""
    torch.manual_seed(0)
    recipe = records.recipe
    model = TextClassifier(load_encoder(records.source), 2, recipe.model.pooling, recipe.model.feature_norm).double()
    nn.init.normal_(model.head.weight, std=_HEAD_STD)
    method = Attempt(count=6, length=options.length, width=100, temperature=temperature)
    attach(model, method, train=("head",))
    part = part_of(model)
    if moved:
        for p in (part.prompt, part.down.weight, part.up.weight):
            p.data += 0.01 * torch.randn_like(p)
    if padding:
        part.__class__ = WithPadding
    return model


def part_of(model: nn.Module) -> MixedPrompt:
    return next(m for m in model.modules() if isinstance(m, MixedPrompt))


def moved(model: TextClassifier, records: Records, alike: list[Any], longer: Any) -> Moved:
    clip, others = records.recipe.privacy.clip, len(alike)
    weights, gradients, sums = [], [], []
    for batch in (records.collate(alike), records.collate([*alike, longer])):
        weights.append(_weights(model, batch)[:others])
        with capture(model) as grads:
            classification_loss(model, batch).sum().backward()
        dense = {name: form.dense()[:others] for name, form in grads.items()}
        flat = torch.cat([g.flatten(1) for g in dense.values()], dim=1)
        gradients.append(flat)
        sums.append((flat * (clip / flat.norm(dim=1, keepdim=True)).clamp(max=1)).sum(dim=0))
    change = (gradients[1] - gradients[0]).norm(dim=1) / gradients[0].norm(dim=1)
    return Moved(
        float((weights[1] - weights[0]).abs().max()),
        float(change.median()),
        float(change.max()),
        float((sums[1] - sums[0]).norm() / clip),
    )


@torch.no_grad()
def _weights(model: TextClassifier, batch: Mapping[str, Tensor]) -> Tensor:
    part, mask = part_of(model), batch["attention_mask"]
    embeds = model.encoder.get_input_embeddings()(batch["input_ids"])
    own = part.prompt.expand(len(mask), -1, -1)
    return part.attention(own, part.summary(embeds, mask))


def _passes(model: TextClassifier, records: Records, alike: list[Any], longer: Any) -> bool:
    """Whether the preflight, which compares examples with and without their padding, lets it pass."""
    try:
        preflight(model, classification_loss, records.collate([longer, *alike[:3]]))
    except PrivacyError:
        return False
    return True


def signals(records: Records, options: argparse.Namespace) -> list[list[str]]:
    """For each temperature: how uneven the weights are over sentences, and the groups' share of the mean clipped
    gradient, at the start."""
    rows = []
    batch = records.collate(records.train[: options.others])
    for temperature in (None, 100.0, 20.0, 5.0, 1.0):
        model = build(records, options, temperature, padding=False, moved=False)
        weights = _weights(model, batch)
        with capture(model) as grads:
            classification_loss(model, batch).sum().backward()
        squares: dict[str, float] = defaultdict(float)
        for name, g in clipped_sum(dict(grads), records.recipe.privacy.clip)[0].items():
            squares[_GROUPS.get(name.partition("soft_prompt.")[2], "head")] += float(g.dense().square().sum())
        whole = math.sqrt(sum(squares.values()))
        shares = [_number(math.sqrt(squares[group]) / whole) for group in ("P_new", "W_down, W_up", "head")]
        rows.append([_words(part_of(model).temperature), f"{weights.min():.3f} to {weights.max():.3f}", *shares])
    return rows


def report(rows: list[list[str]], shares: list[list[str]], records: Records, options: argparse.Namespace) -> str:
    columns = ["maximum", "temperature", "weights of one", "gradient of one: median", "largest", "sum, in clips"]
    return (
        f"{heading('ATTEMPT: padding in the maximum')}"
        f"- setting: 6-layer encoder, {options.length} vectors a prompt, 6 source prompts (rows of the vocabulary), "
        f"width 100, clip {records.recipe.privacy.clip:g}, float64; {options.others} sentences of {options.tokens} "
        f"tokens, joined by one of {2 * options.tokens}\n\n"
        "What the longer record changes in the others:\n\n"
        f"{table([*columns, 'passes the preflight'], rows)}\n\n"
        "Weights of one: largest change of an attention weight. Gradient of one: change over its norm, before "
        "clipping. Sum: norm of the change of the others' summed clipped gradients, over the clip; the noise is made "
        "for what the joining record adds itself, at most 1, and this comes on top. The preflight compares every "
        "example with and without its padding.\n\n"
        "Share of the groups in the mean clipped gradient at the start:\n\n"
        f"{table(['temperature', 'attention weights', 'P_new', 'W_down, W_up', 'head'], shares)}\n"
    )


def _words(temperature: float) -> str:
    return f"{temperature:,.0f}"


def _number(x: float) -> str:
    """Two digits that count.

    >>> [_number(x) for x in (0.0, 0.123, 1.6e-7)]
    ['0', '0.12', '1.6e-07']
    """
    return f"{x:.2g}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--others", type=int, default=100, help="equally long sentences in the batch")
    parser.add_argument("--tokens", type=int, default=20, help="their length")
    parser.add_argument("--length", type=int, default=20, help="vectors in a prompt")
    parser.add_argument("--temperature", type=float, default=1.0, help="beside the published one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="write results/attempt_masking.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()

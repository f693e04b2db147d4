"""What a cache saves at BERT-base's size: 12 blocks of 768, where the quickstart's model has 6 of 384.

    python benchmarks/cache_base.py --epochs 20 --write

The weights are random, since time does not depend on them, and so no accuracy is told. Each row fills the cache over
all records of the movie reviews, and then takes some private steps; an epoch is as many steps as the recipe has in one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from cache import BASE, ROWS, SIZES, Row, training
from common import heading, load_records, publish, table
from methods import REMOVED
from transformers import BertConfig, BertModel
from variants import quiet

from dpft.models.source import load_tokenizer

LAST = ('method.name="lst"', "method.reduction=8", "method.keep=[11]")
CASES = {
    BASE: replace(ROWS[BASE], lr=1e-3),
    "ladder, last block, r 8": Row((*REMOVED, *LAST), 1e-3),
    "ladder, every second block, r 8": Row((*REMOVED, *LAST[:2], "method.keep=[1, 3, 5, 7, 9, 11]"), 1e-3),
    "head only": Row((*REMOVED, 'method.name="head"'), 1e-3),
}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    quiet()
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        save_base(Path(name))
        for case, row in CASES.items():
            found[case] = measured(replace(row, overrides=(*row.overrides, f'model.source="{name}"')), options)
            print(f"{case}: {found[case]}", file=sys.stderr, flush=True)
    publish("cache-base", report(found, options), write=options.write)


def save_base(folder: Path) -> None:
    """A BERT of base size with random weights, and the quickstart's tokenizer."""
    tokenizer = load_tokenizer(load_records().source)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measured(row: Row, options: Namespace) -> tuple[float, float]:
    """Seconds to fill the cache, and of an epoch's steps. The first step is not counted."""
    with training(row, row.lr, options) as run:
        run.steps(1)
        count = options.steps if row.cached else options.plain_steps
        taken = run.steps(1 + count)
        return run.fill, taken / count * run.engine.plan.steps / options.epochs


def report(found: dict[str, tuple[float, float]], options: Namespace) -> str:
    totals = {case: fill + options.epochs * epoch for case, (fill, epoch) in found.items()}
    lines = [
        [
            case,
            f"{fill:.0f}" if CASES[case].cached else "",
            f"{epoch:.1f}",
            f"{totals[case]:.0f}",
            f"{totals[BASE] / totals[case]:.1f}",
        ]
        for case, (fill, epoch) in found.items()
    ]
    privacy = load_records([*SIZES, f"privacy.epochs={options.epochs}"]).recipe.privacy
    setting = (
        f"- a BERT of 12 blocks of 768 with random weights; {privacy.examples} sentences, {privacy.expected_batch} "
        f"expected in a step; {options.steps} steps timed ({options.plain_steps} without a cache), and "
        f"{options.epochs:g} epochs reckoned from them; cache in {options.dtype}\n\n"
    )
    columns = ["method", "s to fill", "s an epoch", f"s for {options.epochs:g} epochs", "times cheaper"]
    return heading("The frozen model runs once, at base size") + setting + table(columns, lines)


def _options(arguments: Sequence[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=11, help="timed, on a cache")
    parser.add_argument("--plain-steps", type=int, default=3, help="timed, without one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16", help="on disk")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/results/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

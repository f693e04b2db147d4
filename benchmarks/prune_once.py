"""Prune once, train privately many times: a sparse all-MiniLM-L6-v2 beside the dense one, on the movie reviews.

    python benchmarks/prune_once.py --steps 1000 --seeds 3 --write

The backbone is pruned by ``dpft.sparsify`` on the Python language reference in plain text, which the standard library
carries (``pydoc_data.topics``, for the help() of the interpreter): public, and with none of the reviews in it. Then the
quickstart's recipe trains privately on the dense model and on the sparse one, whose zeros are locked: LoRA beside the
blocks' Linear layers, and these layers themselves. Each result is merged and exported in 8 bits too.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from common import QUICKSTART, Records, heading, load_records, publish, table
from methods import REMOVED
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
from variants import quiet
from whole_runs import compute_of, mean_and_sd

from dpft.evaluate import scores
from dpft.export import export
from dpft.models.classifier import TextClassifier
from dpft.models.source import load_encoder, resolve
from dpft.peft.inject import ALL_LINEAR, linears
from dpft.quantise import FILE, SCALE
from dpft.run import run
from dpft.sparsify import Pruning, sparsify

_FULL = (*REMOVED, 'method.name="full"', 'method.targets=["all-linear"]', "optimizer.lr=1e-3", "optimizer.head_lr=1e-2")
_LORA = (*REMOVED, "method.rank=4", 'method.targets=["all-linear"]', "optimizer.lr=1e-2", "optimizer.head_lr=1e-2")
_LOCK = 'method.pattern="lock"'
ROWS: dict[str, tuple[bool, tuple[str, ...]]] = {  # whether on the sparse model, and what to override in the recipe
    "LoRA, rank 4, dense": (False, _LORA),
    "LoRA, rank 4, sparse and locked": (True, (*_LORA, _LOCK)),
    "Linear layers in full, dense": (False, _FULL),
    "Linear layers in full, sparse and locked": (True, (*_FULL, _LOCK)),
}


@dataclass(frozen=True)
class Result:
    """One private run: accuracies of what was trained and of its 8-bit export, the share of the backbone's zeros that
    are zeros of the merged model (None of a dense backbone), sizes in MB of merged weights in float32, in 8 bits, and
    of these under gzip."""

    trained: int
    score: float
    kept: float | None
    whole: float
    small: float
    zipped: float
    int8_score: float


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        facts = pruned(here, options)
        lines = []
        for name, (sparse, fields) in ROWS.items():
            made = list(_results(name, fields, here / "sparse" if sparse else None, here, options))
            lines.append([name, *_line(made)])
        publish("prune-once", _report(facts, lines, options), write=options.write)


def pruned(here: Path, options: Namespace) -> dict[str, Any]:
    """Make ``here/sparse``; what its sparsity.json says."""
    (here / "reference.txt").write_text(public_text(), encoding="utf-8")
    pruning = Pruning(options.sparsity, options.steps, batch=options.windows, length=options.length)
    model = load_records(_sizes(options), options.recipe).recipe.model.source
    return sparsify(model, here / "sparse", here / "reference.txt", pruning, public=True, say=_say)


def public_text() -> str:
    """The language reference that help() shows, topic after topic."""
    return "\n\n".join(topics[name] for name in sorted(topics))


def _results(name: str, fields: Sequence[str], base: Path | None, here: Path, options: Namespace) -> Iterator[Result]:
    for seed in range(options.seeds):
        model = [f'model.source="{base}"'] if base else []
        given = [*fields, *model, *_sizes(options), f"seed={seed}", "evaluate.public=true"]
        made = result(load_records(given, options.recipe), base, Path(tempfile.mkdtemp(dir=here)))
        _say(f"{name}, seed {seed}: {made.score:.4f}, in 8 bits {made.int8_score:.4f}")
        yield made


def result(records: Records, base: Path | None, here: Path) -> Result:
    """Train privately into ``here``, merge, export."""
    outcome = run(records.recipe, here / "run")
    local = records.source.location if records.source.public_name.startswith("folder:") else None
    for to, int8 in (("merged", False), ("int8", True)):
        export(here / "run", here / to, merged=True, int8=int8, base=local)
    kept = zeros_kept(load_encoder(resolve(str(base))), load_encoder(resolve(str(here / "merged")))) if base else None
    data = (here / "int8" / FILE).read_bytes()
    return Result(
        outcome.statement["trained_parameters"]["count"],
        float(outcome.scores["accuracy"]),  # there, since the caller asked for public held-out records
        kept,
        (here / "merged" / "model.safetensors").stat().st_size / 1e6,
        len(data) / 1e6,
        len(gzip.compress(data, 6)) / 1e6,
        int8_accuracy(records, here / "int8"),
    )


def zeros_kept(base: Any, merged: Any) -> float:
    """The share of the zeros in the base's block Linear weights that are zero in the merged model."""
    after = dict(linears(merged, (ALL_LINEAR,)))
    zeros = {name: m.get_parameter("weight") == 0 for name, m in linears(base, (ALL_LINEAR,))}
    still = sum(int((after[name].get_parameter("weight") == 0)[zero].sum()) for name, zero in zeros.items())
    return still / sum(int(zero.sum()) for zero in zeros.values())


def int8_accuracy(records: Records, folder: Path) -> float:
    """Of the exported files alone, multiplied out again as their README does it."""
    stored = load_file(folder / FILE)
    scales = {name: stored.pop(name) for name in list(stored) if name.endswith(SCALE)}
    state = {name: t * scales[name + SCALE] if t.dtype == torch.int8 else t for name, t in stored.items()}
    made = type(AutoModel.from_config(config := AutoConfig.from_pretrained(folder)))
    encoder = made.from_pretrained(None, config=config, state_dict=state)
    recipe = records.recipe
    model = TextClassifier(encoder, len(recipe.data.labels), recipe.model.pooling, recipe.model.feature_norm)
    model.head.load_state_dict(load_file(folder / "head.safetensors"))
    budget = recipe.train.token_budget
    return scores(model.eval(), records.heldout, records.collate, budget, compute_of(recipe))["accuracy"]


def _line(made: Sequence[Result]) -> list[str]:
    first = made[0]
    kept = "" if first.kept is None else f"{100 * min(one.kept or 0.0 for one in made):.2f}"
    sizes = [f"{size:.1f}" for size in (first.whole, first.small, first.zipped)]
    scores = [mean_and_sd([one.score for one in made]), mean_and_sd([one.int8_score for one in made])]
    return [f"{first.trained:,}", *scores, kept, *sizes]


def _report(facts: dict[str, Any], lines: list[list[str]], options: Namespace) -> str:
    columns = ["private training", "trained numbers", "accuracy (%)", "accuracy in 8 bits (%)", "zeros kept (%)"]
    columns += ["MB in float32", "in 8 bits", "and under gzip"]
    records, text = load_records(_sizes(options), options.recipe), public_text()
    privacy = records.recipe.privacy
    said = f"epsilon {privacy.epsilon:g}" if privacy.epsilon else f"noise multiplier {privacy.noise_multiplier:g}"
    setting = (
        f"- pruned: {facts['model']}, {facts['sparsity']:.1%} of the blocks' Linear weights zero, in {options.steps} "
        f"steps of {options.windows} windows of {facts['pruning']['length']} tokens; learnt: {facts['objective']}\n"
        f"- public text: Python's pydoc_data.topics, {len(text):,} characters, {facts['windows']} windows, "
        f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}...\n"
        f"- each private run: {said} at delta {privacy.delta:g}, {options.seeds} seeds, "
        f"{len(records.train)} records to train, {len(records.heldout)} held out\n"
    )
    return heading("Prune once, train privately: sparse beside dense") + setting + "\n" + table(columns, lines)


def _sizes(options: Namespace) -> list[str]:
    epochs = [f"privacy.epochs={options.epochs}"] if options.epochs else []
    return [*epochs, *([f"privacy.expected_batch={options.batch}"] if options.batch else [])]


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=QUICKSTART, help="what is trained, on a text encoder")
    parser.add_argument("--sparsity", type=float, default=0.85, help="share of zeros in the blocks' Linear weights")
    parser.add_argument("--steps", type=int, default=300, help="of pruning")
    parser.add_argument("--windows", type=int, default=32, help="of the text in a step of pruning")
    parser.add_argument("--length", type=int, default=64, help="tokens in a window")
    parser.add_argument("--seeds", type=int, default=1, help="private runs of each kind")
    parser.add_argument("--epochs", type=float, default=2.0, help="of private training; 0 = the recipe's own")
    parser.add_argument("--batch", type=int, default=512, help="expected records in a batch; 0 = the recipe's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/results/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

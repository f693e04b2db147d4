"""Every metric by its name in ``generate.metrics``, and what each needs installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dpft.errors import InputError
from dpft.metrics.bleu import bleu, ter
from dpft.metrics.cider import cider
from dpft.metrics.meteor import meteor
from dpft.metrics.nist import nist
from dpft.metrics.rouge import rouge_l

Score = float | str
"""A figure, or a sentence that says why there is none."""

NOTHING = "No text was written, so there is nothing to score."


@dataclass(frozen=True)
class Metric:
    """``compute`` scores texts, at least one, each against its own references, at least one; a str is the reason why
    it can't. ``unit`` says what the number means; ``packages`` are what it imports, by the name that pip knows."""

    compute: Callable[[Sequence[str], Sequence[Sequence[str]]], Score]
    unit: str
    packages: Mapping[str, str]


_SACREBLEU = {"sacrebleu": "sacrebleu"}
METRICS: Mapping[str, Metric] = {
    "bleu": Metric(bleu, "per cent, more is better", _SACREBLEU),
    "nist": Metric(nist, "bits, more is better", _SACREBLEU),
    "meteor": Metric(meteor, "per cent, more is better", {**_SACREBLEU, "nltk": "nltk"}),
    "rouge-l": Metric(rouge_l, "per cent, more is better", {**_SACREBLEU, "rouge_score": "rouge-score"}),
    "cider": Metric(cider, "0 to 10, more is better", _SACREBLEU),
    "ter": Metric(ter, "edits per 100 tokens, fewer is better", _SACREBLEU),
}


def check_metrics(metrics: Sequence[str]) -> None:
    """InputError for a metric that is not known, or whose package is not installed. Reads no text and imports none."""
    for name in metrics:
        if name not in METRICS:
            raise InputError(f'generate.metrics names "{name}"; expected some of {", ".join(METRICS)}.')
        for module, package in METRICS[name].packages.items():
            if importlib.util.find_spec(module) is None:
                raise InputError(
                    f'generate.metrics names "{name}", but {package} is not installed; pip install "dpft[generation]".'
                )


def score(metrics: Sequence[str], written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Each metric's figure, or a sentence that says why there is none.

    Text i is scored against ``references[i]``: one or more, as many as its source has, in any order. White space is
    one space to all of them. InputError as :func:`check_metrics`; ValueError if the two don't go together."""
    check_metrics(metrics)
    if len(written) != len(references) or not all(references):
        raise ValueError("expected as many groups of references as texts, none of them empty")
    if not written:
        return dict.fromkeys(metrics, NOTHING)
    texts = [_one_line(text) for text in written]
    groups = [[_one_line(reference) for reference in group] for group in references]
    return {name: METRICS[name].compute(texts, groups) for name in metrics}


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""ROUGE-L (Lin 2004) as for E2E and COCO: the mean over texts, in per cent.

    (1 + b^2) P R / (R + b^2 P),  b = 1.2       P, R: the best precision and the best recall over a text's references

rouge-score finds the longest common subsequences, in the words of ``tokens.py`` (see there what differs). Its own
figure is another one, and lower: precision and recall of one reference, weighing alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpft.metrics.tokens import words

BETA = 1.2


class _Words:
    """The tokenizer that rouge-score is given."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge_l(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """0 to 100, the more the better. Empty texts score 0."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    total = 0.0
    for text, group in zip(written, references, strict=True):
        found = [scorer.score(reference, text)["rougeL"] for reference in group]
        total += _f_measure(max(float(f.precision) for f in found), max(float(f.recall) for f in found))
    return 100 * total / len(written)


def _f_measure(precision: float, recall: float) -> float:
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision * recall else 0.0

"""ROUGE-L (Lin 2004) by rouge-score, the mean over texts of their best reference, in per cent.

Words are runs of a-z and 0-9 in lower case, without stemming. The F-measure weighs precision and recall alike, within
one reference. The E2E challenge's script takes the best precision and the best recall over all references, and weighs
recall 1.44 times (beta 1.2), so that its figures are somewhat higher.
"""

from __future__ import annotations

from collections.abc import Sequence


def rouge_l(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """0 to 100, the more the better. Empty texts score 0."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    best = [
        max(scorer.score(reference, text)["rougeL"].fmeasure for reference in group)
        for text, group in zip(written, references, strict=True)
    ]
    return 100 * float(sum(best)) / len(best)

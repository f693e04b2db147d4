"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726): how alike n-grams are, the rare ones weighing more.

    10 x mean over texts, references and n = 1..4 of   min(h, r) . r / (|h| |r|)   x   exp(-(words apart)^2 / (2 x 6^2))
    h, r: the text's and the reference's counts of n-grams, each times ln(sources / sources that have it)

A source has an n-gram if one of its references does; none counts as one. What is called CIDEr for E2E is this, with
another tokenizer (see ``tokens.py``). Written here since pycocoevalcap, which has it, brings 100 MB of Java programs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from dpft.metrics.tokens import Ngram, ngrams, words

ORDERS = range(1, 5)
SIGMA = 6.0
ONE_SOURCE = "CIDEr weighs words by how few of the sources have them, so it needs at least two sources."

Vector = dict[Ngram, float]


def cider(written: Sequence[str], references: Sequence[Sequence[str]]) -> float | str:
    """0 to 10, the more the better; the reason where there is one source, whose words would all weigh nothing.

    10 takes a match with all references in at least one n-gram of each order that not all sources have."""
    if len(references) < 2:
        return ONE_SOURCE
    texts = [words(text) for text in written]
    groups = [[words(reference) for reference in group] for group in references]
    return 10 * sum(_order(n, texts, groups) for n in ORDERS) / len(ORDERS)


def _order(n: int, texts: list[list[str]], groups: list[list[list[str]]]) -> float:
    """The mean over texts, of n-grams of one length."""
    have = Counter(ngram for group in groups for ngram in {ngram for r in group for ngram in ngrams(r, n)})
    total = 0.0
    for text, group in zip(texts, groups, strict=True):
        own = _weighed(text, n, have, len(groups))
        alike = [
            _alike(own, _weighed(r, n, have, len(groups))) * math.exp(-((len(text) - len(r)) ** 2) / (2 * SIGMA**2))
            for r in group
        ]
        total += sum(alike) / len(alike)
    return total / len(texts)


def _weighed(tokens: list[str], n: int, have: Counter[Ngram], sources: int) -> Vector:
    return {ngram: k * math.log(sources / max(1, have[ngram])) for ngram, k in ngrams(tokens, n).items()}


def _alike(h: Vector, r: Vector) -> float:
    """Their cosine, with no n-gram of ``h`` counted beyond ``r``; 0 where either is zero."""
    norms = math.hypot(*h.values()) * math.hypot(*r.values())
    return sum(min(h[ngram], r[ngram]) * r[ngram] for ngram in h.keys() & r.keys()) / norms if norms else 0.0

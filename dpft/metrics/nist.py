"""NIST (Doddington 2002), as mteval-v13a computes it for several references, on its tokens without case.

    sum over n = 1..5 of  [info of the n-grams matched] / [n-grams written]   x   exp(-b ln^2 min(1, written / L))
    info(w_1 .. w_n) = log2(count of w_1 .. w_n-1 / count of w_1 .. w_n), counts over all references

An n-gram matches as often as the reference that has it most often. L is the references' mean length, and b is such that
the penalty at 2/3 of it is 1/2. Written here since nltk's corpus_nist takes the matches of one reference at a time,
whatever the others have, and that one's length: with E2E's many references it is another figure. With one reference
the two agree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import or_

from dpft.metrics.tokens import Ngram, mteval, ngrams

ORDERS = range(1, 6)
_PENALTY = math.log(0.5) / math.log(1.5) ** 2

Tokens = list[str]


def nist(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """From 0, the more the better; how far it goes depends on the references. Empty texts score 0."""
    texts = [mteval(text) for text in written]
    groups = [[mteval(reference) for reference in group] for group in references]
    expected = sum(sum(map(len, group)) / len(group) for group in groups)
    ratio = sum(map(len, texts)) / expected if expected else 0.0
    if ratio == 0:
        return 0.0
    information = sum(_information(n, texts, groups) for n in ORDERS)
    return information * math.exp(_PENALTY * math.log(min(1.0, ratio)) ** 2)


def _information(n: int, texts: list[Tokens], groups: list[list[Tokens]]) -> float:
    """Bits that an n-gram which was written carries, on average."""
    counts = _counts(groups, n)
    before: Counter[Ngram] = _counts(groups, n - 1) if n > 1 else Counter({(): counts.total()})
    found, total = 0.0, 0
    for text, group in zip(texts, groups, strict=True):
        own = ngrams(text, n)
        most = reduce(or_, (ngrams(reference, n) for reference in group))
        found += sum(k * math.log2(before[ngram[:-1]] / counts[ngram]) for ngram, k in (own & most).items())
        total += own.total()
    return found / total if total else 0.0


def _counts(groups: list[list[Tokens]], n: int) -> Counter[Ngram]:
    counts: Counter[Ngram] = Counter()
    for group in groups:
        for reference in group:
            counts.update(ngrams(reference, n))
    return counts

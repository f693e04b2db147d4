"""METEOR (Banerjee and Lavie 2005) by nltk, the mean over texts of their best reference, in per cent.

Words match as they are, by stem, or by a synonym of WordNet, which nltk looks up by the stem, so that it misses some.
The published figures for E2E and DART are of METEOR 1.5, a Java program with paraphrases, weights of function words and
other constants: the two are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpft.metrics.tokens import words

NO_WORDNET = (
    "METEOR needs the data of WordNet, which nltk does not find here; install it (python -m nltk.downloader wordnet)."
)


def meteor(written: Sequence[str], references: Sequence[Sequence[str]], synonyms: Any = None) -> float | str:
    """0 to 100, the more the better; the reason where WordNet is missing. Nothing is downloaded.

    A perfect match of m words has 100 - 50 / m^3. ``synonyms`` takes WordNet's place: an object whose
    ``synsets(word)`` have ``lemmas()``."""
    known = synonyms or _wordnet()
    if known is None:
        return NO_WORDNET
    pairs = zip(written, references, strict=True)
    return 100 * sum(_one(words(text), [words(r) for r in group], known) for text, group in pairs) / len(written)


def _one(text: list[str], group: list[list[str]], synonyms: Any) -> float:
    from nltk.translate.meteor_score import meteor_score

    return float(meteor_score(group, text, wordnet=synonyms)) if text else 0.0


def _wordnet() -> Any:
    """WordNet from nltk's data folders, or None."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):  # not there, or not whole
        return None
    return wordnet

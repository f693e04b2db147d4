"""Stand-ins made from the rated sentences: pairs with a verdict of their own, and words that carry tags.

Nobody judged two sentences together and nobody tagged their words. The labels follow from the human ratings (of
sentences, or of a lexicon's words), so that tasks of these shapes can be run for real where no hub is reachable;
figures on them say little about relating texts or tagging as such.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

from dpft.data.rows import Row

TAGS = ("negative", "neutral", "positive")
"""What a word may be tagged as; the sign of its mean valence, neutral where the lexicon has no such word."""

_EDGES = re.compile(r"^\W+|\W+$")


def pair_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Pairs of rows with ``rating``: ``text``, ``text_pair`` and ``label``, 1 if their ratings add up to more
    than 0, else 0.

    Each sentence is in exactly one pair, an odd last one in none. One record is one *pair*: the unit of privacy is
    two sentences, not one. Neighbours in the file would nearly always agree in sign, since it is all but sorted by
    it, so pairs are neighbours in the order of the hash of each row's place: public, as the file is pinned.
    """
    shuffled = sorted(rows, key=lambda row: hashlib.sha256(row.place.encode()).digest())
    for first, second in zip(shuffled[::2], shuffled[1::2], strict=False):  # an odd last one has no partner
        values = {
            "text": first.values["text"],
            "text_pair": second.values["text"],
            "label": int(_rating(first) + _rating(second) > 0),
        }
        yield Row(f"{first.place} and {second.place}", values)


def word_rows(rows: Iterable[Row], valence: Mapping[str, float]) -> Iterator[Row]:
    """The rows' words: ``text`` joins them with single spaces, ``tags`` has one of :data:`TAGS` for each."""
    for row in rows:
        words = str(row.values["text"]).split()
        yield Row(row.place, {"text": " ".join(words), "tags": [tag(word, valence) for word in words]})


def tag(word: str, valence: Mapping[str, float]) -> str:
    """A word's tag, whatever its case and the punctuation around it.

    >>> tag("(Great!)", {"great": 3.1})
    'positive'
    """
    value = valence.get(_EDGES.sub("", word).lower(), 0.0)
    return TAGS[1 + (value > 0) - (value < 0)]


def read_lexicon(content: bytes) -> dict[str, float]:
    """Mean valence by entry: UTF-8 lines of entry, mean, standard deviation and single ratings between tabs.

    Of an entry that comes twice the later counts, as in the lexicon's own reader."""
    lines = content.decode("utf-8").split("\n")
    fields = (line.split("\t") for line in lines if line)
    return {entry: float(mean) for entry, mean, *_ in fields}


def _rating(row: Row) -> float:
    return float(str(row.values["rating"]))

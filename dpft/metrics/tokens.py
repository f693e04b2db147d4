"""Texts as the metrics read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Ngram = tuple[str, ...]


def mteval(text: str) -> list[str]:
    """Tokens of mteval-v13a (sacrebleu's "13a"), lower-cased: what BLEU and NIST count."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return str(Tokenizer13a()(text.lower())).split()


def words(text: str) -> list[str]:
    """Those of them with a letter or a digit: METEOR and CIDEr are published without punctuation.

    The published scripts use Stanford's Penn Treebank tokenizer, which needs Java and parts "is" from "n't" besides."""
    return [token for token in mteval(text) if any(character.isalnum() for character in token)]


def ngrams(tokens: Sequence[str], n: int) -> Counter[Ngram]:
    """How often each run of n tokens comes."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

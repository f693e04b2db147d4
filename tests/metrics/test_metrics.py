"""What all metrics share: a perfect match, no order among references, empty texts, reasons and refusals."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from nltk.translate.nist_score import corpus_nist

from dpft.config.generate_section import GenerateSection
from dpft.errors import InputError
from dpft.metrics import METRICS, check_metrics, score
from dpft.metrics.cider import ONE_SOURCE
from dpft.metrics.meteor import NO_WORDNET, meteor
from dpft.metrics.nist import nist
from dpft.metrics.score import NOTHING

REFERENCES = (
    ("The Vaults is a cheap pub near Café Adriatic.", "Near Café Adriatic there is The Vaults, a cheap pub."),
    ("The Rice Boat serves Indian food in the city centre.",),
    ("Families like Zizzi. It has a rating of 5 out of 5.", "Zizzi is family friendly.", "Go to Zizzi!"),
)
PERFECT = tuple(group[0] for group in REFERENCES)
CLOSE = ("the vaults, a cheap pub near the café.", "Rice is Indian food.", "Zizzi is friendly.")
WITHOUT_DATA = tuple(name for name in METRICS if name != "meteor")
every_metric = pytest.mark.parametrize("name", WITHOUT_DATA)


class OneSynset:
    """A WordNet that knows two words."""

    def synsets(self, word: str) -> list[Any]:
        lemmas = [SimpleNamespace(name=lambda: "car"), SimpleNamespace(name=lambda: "auto")]
        return [SimpleNamespace(lemmas=lambda: lemmas)] if word in ("car", "auto") else []


def one(name: str, written: Any, references: Any) -> float:
    found = score([name], written, references)[name]
    assert isinstance(found, float)
    return found


def better(name: str) -> Callable[[float, float], bool]:
    return (lambda a, b: a < b) if name == "ter" else (lambda a, b: a > b)


def test_the_schema_offers_what_there_is() -> None:
    assert GenerateSection(metrics=tuple(METRICS)).metrics == tuple(METRICS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bleu.*nist.*meteor.*rouge-l.*cider.*ter"):
        GenerateSection(metrics=("chrf",))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "most"), [("bleu", 100), ("rouge-l", 100), ("cider", 10), ("ter", 0)])
def test_a_perfect_match_has_the_most(name: str, most: float) -> None:
    alone = [group[:1] for group in REFERENCES]
    assert one(name, PERFECT, alone) == pytest.approx(most)
    assert better(name)(most, one(name, CLOSE, alone))


@every_metric
def test_the_order_of_references_says_nothing(name: str) -> None:
    turned = [group[::-1] for group in REFERENCES]
    assert one(name, CLOSE, REFERENCES) == pytest.approx(one(name, CLOSE, turned), rel=1e-12)


@every_metric
def test_the_order_of_texts_says_nothing(name: str) -> None:
    assert one(name, CLOSE, REFERENCES) == pytest.approx(one(name, CLOSE[::-1], REFERENCES[::-1]), rel=1e-12)


@every_metric
def test_an_empty_text_counts_as_one(name: str) -> None:
    alone = [group[:1] for group in REFERENCES]
    assert one(name, ("", "", ""), alone) == (100 if name == "ter" else 0)
    empty = one(name, ("", "", ""), REFERENCES)
    some = one(name, (CLOSE[0], "", CLOSE[2]), REFERENCES)
    assert better(name)(some, empty)
    assert better(name)(one(name, CLOSE, REFERENCES), some)


@every_metric
def test_white_space_and_case_say_nothing(name: str) -> None:
    spread = [f"\n {text.upper()}".replace(" ", " \t") for text in CLOSE]
    assert one(name, spread, REFERENCES) == one(name, CLOSE, REFERENCES)


@pytest.mark.parametrize("name", ["bleu", "nist", "rouge-l", "ter"])
def test_a_further_reference_never_harms(name: str) -> None:
    """The text itself, as a reference: of all that count the best reference, or all of them."""
    more = [(*group, text) for group, text in zip(REFERENCES, CLOSE, strict=True)]
    assert better(name)(one(name, CLOSE, more), one(name, CLOSE, REFERENCES))


def test_nist_agrees_with_nltk_where_each_source_has_one_reference() -> None:
    draw = random.Random(0)
    for _ in range(20):
        texts, references = ([" ".join(draw.choices("abcdef", k=draw.randint(5, 9))) for _ in range(4)] for _ in "xy")
        expected = corpus_nist([[r.split()] for r in references], [t.split() for t in texts])
        assert nist(texts, [(r,) for r in references]) == pytest.approx(expected, rel=1e-12)


def test_nist_by_hand() -> None:
    """Two references, five words in all. "a" comes 3 times in them, "a b" 2 times after it; 1 of 2 words is missing."""
    # info(a) = log2(5/3), info(b) = log2(5/2), info(a b) = log2(3/2); the references are 2.5 words long, the text 2.
    expected = 0.5 * (0.7369655941662062 + 1.3219280948873624) + 0.5849625007211562
    penalty = 0.5 ** ((0.22314355131420976 / 0.4054651081081644) ** 2)
    assert nist(["a b"], [("a b", "a b a")]) == pytest.approx(expected * penalty, rel=1e-12)


def test_cider_by_hand() -> None:
    """ "b" and "c" are in one of two sources and weigh ln 2; "a" is in both and weighs nothing."""
    written, references = ["a b b", "a d"], [("a b c",), ("a d",)]
    # First text: words h = 2 b, r = b + c (clipped 1 x 1, norms 2 and sqrt 2); runs of two h = ab + bb, r = ab + bc.
    # Second: a match of all that weighs, in orders 1 and 2, of the four that there are.
    first = (1 / (2 * 2**0.5) + 1 / 2) / 4
    assert one("cider", written, references) == pytest.approx(10 * (first + 2 / 4) / 2, rel=1e-12)


def test_cider_weighs_length() -> None:
    """Six words more are one sigma: everything that matches counts exp(-1/2)."""
    references = [("a b c d",), ("e f g h",)]
    longer = [references[0][0] + " z" * 6, references[1][0]]
    plain = [0.0, 0.0]
    for n in range(1, 5):
        of_reference = 5 - n  # n-grams of four words, ln 2 each, and those of the longer text beside them
        more = {1: 6.0**2, 2: 1 + 5.0**2, 3: 2 + 4.0**2, 4: 3 + 3.0**2}[n]  # "z" runs n-1 times into what was there
        plain[0] += of_reference / (of_reference**0.5 * (of_reference + more) ** 0.5) / 4
        plain[1] += 1 / 4
    expected = 10 * (plain[0] * 0.6065306597126334 + plain[1]) / 2
    assert one("cider", longer, references) == pytest.approx(expected, rel=1e-12)


def test_cider_needs_two_sources() -> None:
    assert score(["cider"], ["a"], [("a",)]) == {"cider": ONE_SOURCE}


def test_bleu_by_hand() -> None:
    """8 of 9 words, 6 of 8, 4 of 7 and 2 of 6 runs match; as long as the closest of the references."""
    written, references = ["a b c d e x g h i"], [("a b c d e f g h i", "y")]
    expected = 100 * (8 / 9 * 6 / 8 * 4 / 7 * 2 / 6) ** 0.25
    assert one("bleu", written, references) == pytest.approx(expected, rel=1e-12)


def test_ter_by_hand() -> None:
    """A word is shifted, another replaced: two edits of the nearest reference, over a mean of five words."""
    assert one("ter", ["b a c d x"], [("a b c d e", "q r s t u")]) == pytest.approx(100 * 2 / 5)


def test_rouge_by_hand() -> None:
    """A common subsequence of three in four words written and six expected."""
    precision, recall = 3 / 4, 3 / 6
    expected = 100 * 2.44 * precision * recall / (recall + 1.44 * precision)
    assert one("rouge-l", ["a b x d"], [("a b c d e f", "q")]) == pytest.approx(expected)


def test_rouge_takes_the_best_precision_and_the_best_recall() -> None:
    assert one("rouge-l", ["a b c d"], [("a b c d e f g h", "a b")]) == pytest.approx(100)


def test_meteor_by_hand() -> None:
    """Three of four words match a reference of six, in two chunks, with the constants 0.9, 3 and 0.5."""
    precision, recall = 3 / 4, 3 / 6
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    expected = 100 * mean * (1 - 0.5 * (2 / 3) ** 3)
    assert meteor(["A b x d."], [("a b c d e f", "q")], OneSynset()) == pytest.approx(expected)
    assert meteor([""], [("a",)], OneSynset()) == 0
    assert meteor(["a car"], [("a auto",)], OneSynset()) == meteor(["a car"], [("a car",)], OneSynset())
    assert meteor(["a b", ""], [("a b",), ("a",)], OneSynset()) == pytest.approx((100 - 50 / 8) / 2)


def test_meteor_without_wordnet_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpft.metrics.meteor._wordnet", lambda: None)
    assert score(["meteor", "bleu"], PERFECT, REFERENCES) == {"meteor": NO_WORDNET, "bleu": pytest.approx(100)}


def test_nothing_written_is_a_reason() -> None:
    assert score(["bleu"], [], []) == {"bleu": NOTHING}
    assert score([], ["a"], [("a",)]) == {}


@pytest.mark.parametrize(("written", "references"), [(["a"], []), (["a"], [()]), ([], [("a",)])])
def test_texts_and_references_go_together(written: Any, references: Any) -> None:
    with pytest.raises(ValueError, match="as many groups of references as texts"):
        score(["bleu"], written, references)


def test_unknown_metrics_and_missing_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r'generate\.metrics names "chrf"'):
        check_metrics(["bleu", "chrf"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_metrics([])
    for name in METRICS:
        with pytest.raises(InputError, match=rf'"{name}", but .*pip install "dpft\[generation\]"'):
            check_metrics([name])

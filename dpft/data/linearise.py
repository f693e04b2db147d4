"""A meaning representation as one line of text, as GPT-2 was fine-tuned on E2E and DART by Li and Liang (2021,
arXiv 2101.00190), Hu et al. (2021, arXiv 2106.09685) and Yu et al. (2022, arXiv 2110.06500).

    e2e    name[The Vaults], eatType[pub], priceRange[more than £30]
           name : The Vaults | Type : pub | price : more than £30
    dart   [["Mars Hill College", "JOINED", "1973"], ["Mars Hill College", "LOCATION", "North Carolina"]]
           Mars Hill College : joined : 1973 | Mars Hill College : location : North Carolina

The form of DART is verified in the authors' code; the names that E2E's attributes get are from memory, unverified.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Literal

Kind = Literal["e2e", "dart"]

_RENAMED = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_ATTRIBUTE = re.compile(r"([^\[\],]+)\[([^\[\]]+)\]")
# No two neighbours below match the same character, so that a long text takes linear time.
_ATTRIBUTES = re.compile(rf"{_ATTRIBUTE.pattern}(?:\s*,{_ATTRIBUTE.pattern})*\s*")
_BROKEN = re.compile("[\\0\\ud800-\\udfff]")
_E2E = "expected attributes such as name[The Vaults], eatType[pub], with commas between"
_DART = "expected a list of triples, each a subject, a relation and an object that are texts"


def linearise(kind: Kind, value: object) -> str:
    """``value`` as one line: E2E's text, or DART's triples as lists or as the JSON text of lists.

    Attributes beside the renamed ones keep their names; runs of white space become one space. ValueError for what
    has another form, without the value, which is private."""
    line = " | ".join(_attributes(value) if kind == "e2e" else [_triple(t) for t in _triples(value)])
    if _BROKEN.search(line):
        raise ValueError("expected valid Unicode text, without NULs and lone surrogates")
    return line


def _attributes(value: object) -> list[str]:
    if not isinstance(value, str) or not _ATTRIBUTES.fullmatch(value):
        raise ValueError(_E2E)
    pairs = [(_plain(key, _E2E), _plain(text, _E2E)) for key, text in _ATTRIBUTE.findall(value)]
    return [f"{_RENAMED.get(key, key)} : {text}" for key, text in pairs]


def _triples(value: object) -> Sequence[object]:
    found = _parsed(value) if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not found:
        raise ValueError(_DART)
    return found


def _parsed(text: str) -> object:
    """What JSON ``text`` holds; None where it is not JSON, since json's own errors hold the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _triple(triple: object) -> str:
    if not isinstance(triple, (list, tuple)) or len(triple) != 3:
        raise ValueError(_DART)
    subject, relation, target = (_plain(part, _DART) for part in triple)
    return f"{subject} : {relation.lower()} : {target}"


def _plain(part: object, expected: str) -> str:
    """One line that is not empty."""
    line = " ".join(part.split()) if isinstance(part, str) else ""
    if not line:
        raise ValueError(expected)
    return line

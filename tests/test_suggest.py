"""Suggestions: valid for any public figures, moving the right way, and quiet about ordinary plans."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpft.config.dump import toml_value
from dpft.config.load import parse_recipe
from dpft.config.task_fields import Task
from dpft.engine.plan import plan
from dpft.errors import InputError
from dpft.suggest import RULES, delta_for, expected_batch, remarks, suggest

RECORDS = st.integers(1, 10**9)
# What a recipe needs beside the suggested lines, by task.
DATA = {
    "classification": {"labels": ["a", "b"]},
    "multilabel": {"labels": ["a"]},
    "regression": {},
    "token-classification": {"labels": ["a", "b"]},
    "causal-lm": {},
    "seq2seq": {"target": "target"},
}


@settings(max_examples=100, deadline=None)
@given(RECORDS, st.floats(0.01, 100), st.sampled_from(get_args(Task)), st.none() | st.integers(1, 10**5))
def test_every_suggestion_is_a_valid_recipe(records: int, epsilon: float, task: Task, width: int | None) -> None:
    found = suggest(records, epsilon, task, width)
    assert 1 <= found.expected_batch <= records
    assert 0 < delta_for(records) * records < 1
    data = {"source": "csv", "path": "x.csv", "unit": "record", "task": task, **DATA[task]}
    privacy = {"epsilon": epsilon, "delta": delta_for(records), "examples": records}
    given = {f"data.{key}": value for key, value in data.items()} | {f"privacy.{k}": v for k, v in privacy.items()}
    lines = [*given.items(), *((line.key, line.value) for line in found.lines())]
    recipe = parse_recipe('name = "x"\n[model]\nsource = "m"\n', [f"{key}={toml_value(value)}" for key, value in lines])
    assert recipe.privacy.expected_batch == found.expected_batch
    assert recipe.optimizer.lr == found.lr


@given(RECORDS)
def test_more_records_make_larger_batches_of_a_smaller_share(records: int) -> None:
    """Up to the rounding to two digits."""
    less, more = expected_batch(records), expected_batch(4 * records)
    assert less <= more
    assert more / (4 * records) <= 1.06 * less / records


@pytest.mark.parametrize("table", [RULES.epochs, RULES.methods])
def test_every_table_of_the_rules_has_an_answer_for_everything(table: Any) -> None:
    limits = [limit for limit, _ in table]
    assert all(a < b for a, b in pairwise(limits))
    assert limits[-1] == float("inf")


def test_a_table_of_rules_is_what_is_used() -> None:
    """The lead sets numbers in one place."""
    rules = replace(RULES, batch=1.0, epochs=((float("inf"), 3.0),), average="ema")
    found = suggest(10_000, 3.0, rules=rules)
    assert (found.expected_batch, found.epochs, found.steps) == (100, 3.0, 300)
    assert ("optimizer.average", "ema") in [(line.key, line.value) for line in found.lines()]


@pytest.mark.parametrize(
    ("records", "epsilon", "width"), [(0, 3.0, None), (5, 0.0, None), (5, float("inf"), 8), (5, 3.0, 0)]
)
def test_figures_that_make_no_sense_are_refused(records: int, epsilon: float, width: int | None) -> None:
    with pytest.raises(InputError, match="correct"):
        suggest(records, epsilon, width=width)


def test_only_what_differs_greatly_draws_a_remark() -> None:
    usual = plan(delta=1e-6, examples=50_000, expected_batch=1900, steps=5, noise_multiplier=1.0)
    assert remarks(usual) == ()
    (small,) = remarks(replace(usual, expected_batch_size=90, sample_rate=90 / 50_000))
    assert "0.2% of about 50,000" in small
    assert "expected_batch=1200" in small
    (noisy,) = remarks(replace(usual, noise_multiplier=60.0))
    assert "0.032 clips" in noisy

"""``dpft init`` and what ``dpft plan`` suggests, at the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpft.config import load_recipe
from dpft.suggest import suggest

LETTERS = "body,category,patient\nSENTINEL,SENTINEL,SENTINEL\n"


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    (tmp_path / "my letters.csv").write_text(LETTERS)
    return tmp_path


def test_a_recipe_is_written_once_and_can_be_planned(dpft: Any, letters: Path) -> None:
    options = ("--text", "body", "--label", "category", "--group", "patient", "--records", "4000", "--epsilon", "2")
    answer = dpft("init", "my letters.csv", *options)
    assert answer.code == 0, answer.err
    assert answer.out == (
        "Wrote my letters.toml; list the classes in data.labels (they are not taken from the records); then look at "
        "the promise with: dpft plan 'my letters.toml'\n"
    )
    before = (letters / "my letters.toml").read_text()
    refused = dpft("init", "my letters.csv", *options)
    assert (refused.code, refused.out) == (2, "")
    assert "my letters.toml exists already" in refused.err
    assert (letters / "my letters.toml").read_text() == before

    open_labels = dpft("plan", "my letters.toml")
    assert (open_labels.code, open_labels.err.count("\n")) == (2, 1)
    assert "data.labels: expected the names" in open_labels.err
    answer = dpft("plan", "my letters.toml", "--set", 'data.labels=["a", "b"]', "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["unit"] == {"name": "patient", "adjacency": "add_remove", "n_public": None}


def test_labels_are_given_between_commas(dpft: Any, letters: Path) -> None:
    columns = ("--text", "body", "--label", "category")
    answer = dpft("init", "my letters.csv", *columns, "--labels", 'pain, "no, , pain"', "--out", "new.toml")
    assert answer.code == 2  # an empty name
    answer = dpft("init", "my letters.csv", *columns, "--labels", 'pain, {no} "pain"', "--out", "new.toml")
    assert answer.code == 0, answer.err
    assert load_recipe(letters / "new.toml").data.labels == ("pain", '{no} "pain"')


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("absent.csv",), "absent.csv can't be read"),
        (("my letters.csv", "--text", "body", "--label", "categories"), 'did you mean "category"?'),
        (("my letters.csv", "--task", "regresion"), 'did you mean "regression"?'),
        (
            ("my letters.csv", "--text", "body", "--label", "category", "--out", "no/x.toml"),
            "no/x.toml can't be written",
        ),
    ],
)
@pytest.mark.usefixtures("letters")
def test_what_cannot_be_written_is_one_sentence(dpft: Any, options: tuple[str, ...], part: str) -> None:
    answer = dpft("init", *options)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert part in answer.err
    assert "SENTINEL" not in answer.err


def test_init_loads_no_torch(python: Any, letters: Path) -> None:
    """A recipe is written without what could run one."""
    found = python(
        "import sys\n"
        "sys.argv = ['dpft', 'init', 'my letters.csv', '--text', 'body', '--label', 'category']\n"
        "from dpft.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print('LOADED', *sorted(set(sys.modules) & {'torch', 'transformers', 'datasets'}))"
    )
    assert found.rstrip().endswith("LOADED")


def test_a_budget_and_a_size_alone_are_completed(dpft: Any) -> None:
    options = ("--epsilon", "6.7", "--examples", "8605")
    answer = dpft("plan", *options, "--json")
    assert answer.code == 0, answer.err
    made, found = json.loads(answer.out), suggest(8605, 6.7)
    assert (made["expected_batch_size"], made["steps"]) == (found.expected_batch, found.steps)
    assert made["suggested"] == {line.key: line.value for line in found.lines()}
    assert made["epsilon"]["upper"] <= 6.7
    own = json.loads(dpft("plan", *options, "--delta", "1e-7", "--clip", "0.5", "--json").out)
    assert (own["delta"], own["clip"]) == (1e-7, 0.5)
    text = dpft("plan", *options).out
    assert text.index("Suggested") < text.index("privacy.expected_batch = 510") < text.index("guarantee")
    assert 'method.name = "lora"' in text


@pytest.mark.parametrize("more", [("--batch", "100"), ("--epochs", "2"), ("--advantage", "0.1")])
def test_what_is_given_in_part_is_not_completed(dpft: Any, more: tuple[str, ...]) -> None:
    """F4: a forgotten option is an error as before, and no guess."""
    answer = dpft("plan", "--epsilon", "3", "--delta", "1e-5", "--examples", "5000", *more)
    assert (answer.code, answer.err.count("\n")) == (2, 1)


def test_a_recipe_far_off_gets_a_remark_and_no_other(dpft: Any, local: Path) -> None:
    assert "Suggestion:" not in dpft("plan", local).out
    assert "Suggestion: a batch of 20 is 0.2% of" in dpft("plan", local, "--set", "privacy.expected_batch=20").out

"""0 done, 2 wrong input, 3 the promise would break, 1 anything else; one clear sentence, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def one_sentence(answer: Any, code: int, *parts: str) -> None:
    assert answer.code == code, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1  # one line
    assert "Traceback" not in answer.err
    for part in parts:
        assert part in answer.err


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("privacy.epsilonn=3", ("privacy.epsilonn", '"privacy.epsilon"')),
        ("privacy.epsilom=3", ('"privacy.epsilon"',)),
        ("optimiser.lr=1", ("optimiser", '"optimizer')),
        ("lr=1", ('"optimizer.lr"',)),
        ("optimizer.name=adan", ("optimizer.name", '"adam"')),
        ("privacy.delta=0.5", ("delta", "examples")),
        ("privacy.clip=inf", ("privacy.clip",)),
        ("privacy.clip=0", ("privacy.clip",)),
        ("privacy.epsilon=nan", ("privacy.epsilon",)),
        ("privacy.epsilon=-1", ("privacy.epsilon",)),
        ("privacy.noise_multiplier=1", ("noise_multiplier", "both")),
        ("privacy.expected_batch=100000", ("expected_batch",)),
        ("train.token_budget=1", ("train.token_budget",)),
        ("model.trust_remote_code=true", ("never runs code",)),
        ("name=../elsewhere", ("name",)),
        ("seed", ("key=value",)),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_wrong_recipe_is_one_sentence_that_names_the_field(
    dpft: Any, quickstart: Path, command: str, change: str, parts: tuple[str, ...]
) -> None:
    """F4, E6, I3, I4: before torch, a model or a record is touched."""
    one_sentence(dpft(command, quickstart, "--set", change), 2, *parts)
    assert {p.name for p in quickstart.parent.iterdir()} == {"recipe.toml"}


def test_a_missing_recipe_is_named(dpft: Any) -> None:
    """F4."""
    one_sentence(dpft("run", "no-such.toml"), 2, "no-such.toml")


def test_a_missing_model_and_missing_records_are_named(dpft: Any, local: Path) -> None:
    """F4."""
    one_sentence_about_the_model = dpft("run", local)
    assert one_sentence_about_the_model.code == 2
    assert "model.source" in one_sentence_about_the_model.err
    assert "Traceback" not in one_sentence_about_the_model.err


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((), ("--delta",)),
        (("--delta", "1e-5"), ("--batch",)),
        (("--delta", "1e-5", "--batch", "10"), ("epsilon", "noise_multiplier")),
        (("--delta", "0.1", "--batch", "10", "--examples", "100", "--epsilon", "1", "--epochs", "1"), ("delta",)),
        (("--delta", "1e-5", "--batch", "10", "--examples", "5", "--epsilon", "1", "--epochs", "1"), ("examples",)),
        (("--delta", "1e-5", "--batch", "10", "--examples", "100", "--epsilon", "0", "--epochs", "1"), ("epsilon",)),
        (
            ("--delta", "1e-5", "--batch", "10", "--sample-rate", "2", "--epsilon", "1", "--steps", "1"),
            ("sample_rate",),
        ),
        (("--delta", "1e-5", "--batch", "10", "--sample-rate", "0.1", "--epsilon", "1"), ("epochs", "steps")),
        (("--delta", "0.2", "--batch", "10", "--sample-rate", "0.1", "--epsilon", "1", "--steps", "1"), ("delta",)),
        (
            ("--delta", "1e-5", "--batch", "10", "--examples", "99", "--epsilon", "1", "--steps", "2", "--clip", "-1"),
            ("clip",),
        ),
        (("--set", "privacy.epsilon=1"), ("recipe",)),
    ],
)
def test_wrong_options_of_plan_are_named(dpft: Any, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """F4, E6: delta at or above one over the number of records, public or estimated, included."""
    one_sentence(dpft("plan", *options), 2, *parts)


@pytest.mark.parametrize("option", [("--epsilon", "1"), ("--clip", "2"), ("--steps", "3"), ("--batch", "3")])
def test_options_beside_a_recipe_are_refused_and_not_ignored(dpft: Any, local: Path, option: tuple[str, str]) -> None:
    """F4: an ignored --clip would show a plan that nobody asked for."""
    one_sentence(dpft("plan", local, *option), 2, "--set privacy.")


@pytest.mark.parametrize("arguments", [("frobnicate",), ("plan", "--delta", "x"), ("run",), ("plan", "--no-such")])
def test_a_wrong_command_line_is_2_and_says_how_to_get_help(dpft: Any, arguments: tuple[str, ...]) -> None:
    """F4."""
    answer = dpft(*arguments)
    assert answer.code == 2
    assert "--help" in answer.err
    assert "Traceback" not in answer.err


def test_an_unforeseen_error_is_1_and_its_text_is_not_shown(
    dpft: Any, quickstart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2: a library's exception may quote a record."""
    from dpft.cli import run

    def fail(*_: object) -> None:
        raise ValueError("the record says: zyxprivate")

    monkeypatch.setattr(run, "load_recipe", fail)
    answer = dpft("run", quickstart)
    one_sentence(answer, 1, "ValueError")
    assert "zyxprivate" not in answer.err


def test_each_error_of_the_toolkit_has_its_code() -> None:
    """The contract's table, at its source."""
    from dpft import errors

    assert errors.InputError.exit_code == 2
    assert errors.PrivacyError.exit_code == 3
    assert errors.TrainingError.exit_code == 1

"""``dpft plan``: the promise before anything runs, without data, model or torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import Unit

OPTIONS = ("--delta", "1e-6", "--examples", "10000", "--batch", "100", "--epochs", "1", "--epsilon", "3")


def test_a_recipe_and_the_same_options_and_the_library_give_one_plan(dpft: Any, local: Path) -> None:
    """E1, D1, F5."""
    import dpft as library

    answers = [dpft("plan", local, "--json"), dpft("plan", *OPTIONS, "--json")]
    plans = [json.loads(a.out) for a in answers]
    assert [a.code for a in answers] == [0, 0]
    made = library.plan(epsilon=3.0, delta=1e-6, examples=10_000, expected_batch=100, epochs=1).to_dict()
    assert plans[1] == json.loads(json.dumps(made))
    assert plans[0].pop("unit")["name"] == "letter"
    certificate = plans[0].pop("certificate"), plans[1].pop("certificate")
    assert certificate[0]["bound"] == certificate[1]["bound"]
    del plans[1]["unit"]
    assert plans[0] == plans[1]


def test_what_is_planned_keeps_the_budget(dpft: Any) -> None:
    """E4: the certified figure is at most what was asked, and close to it."""
    made = json.loads(dpft("plan", *OPTIONS, "--json").out)
    assert 3 * 0.99 < made["epsilon"]["upper"] <= 3 * (1 + 1e-6)
    assert made["epsilon"]["lower"] <= made["epsilon"]["upper"]
    assert {row["method"] for row in made["certificate"]["rows"]} == {"pld", "prv", "rdp"}
    assert (made["steps"], made["sample_rate"], made["sampler"]) == (100, 0.01, "poisson")
    assert made["mechanism"] == {
        "kind": "poisson_gaussian", "v": 1, "q": 0.01, "sigma": made["noise_multiplier"], "steps": 100,
    }  # fmt: skip


def test_the_table_names_unit_and_relation(dpft: Any, local: Path) -> None:
    """E6: the number never stands alone."""
    text = " ".join(dpft("plan", local).out.split())
    for part in ("at delta 1e-06 for each letter", "the number of records is public", "PLD", "PRV", "RDP", "poisson"):
        assert part in text


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ("privacy.clip=0.25", "clip", 0.25),
        ("privacy.epochs=2.0", "steps", 200),
        ("privacy.expected_batch=200", "expected_batch_size", 200),
        ("optimizer.lr=1e-3", "clip", 1.0),
    ],
)
def test_set_changes_one_field(dpft: Any, local: Path, change: str, field: str, value: float) -> None:
    """F4: what is set is what is planned."""
    answer = dpft("plan", local, "--set", change, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)[field] == value


def test_one_choice_is_turned_into_another(dpft: Any, local: Path) -> None:
    """F4, D5: the number of records becomes secret, and the relation follows."""
    answer = dpft("plan", local, "--set", "privacy.examples=", "--set", "privacy.sample_rate=0.01", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["unit"] == {"name": "letter", "adjacency": "add_remove", "n_public": None}


def test_an_awkward_number_of_records_loses_no_step(dpft: Any) -> None:
    """D4: 3 epochs at q = 7/1001 are 429 steps, and int(1/q) is never used."""
    options = ("--delta", "1e-6", "--examples", "1001", "--batch", "7", "--epochs", "3", "--noise-multiplier", "1")
    made = json.loads(dpft("plan", *options, "--json").out)
    assert made["steps"] == 429
    assert made["sample_rate"] == 7 / 1001


def test_planning_imports_neither_torch_nor_a_model_library(python: Any, local: Path) -> None:
    """F2, I3: no data path exists here, and nothing that could read one is loaded."""
    found = python(
        "import sys, json\n"
        f"sys.argv = ['dpft', 'plan', {str(local)!r}, '--json']\n"
        "from dpft.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print('LOADED', *sorted(set(sys.modules) & {'torch', 'transformers', 'datasets', 'pyarrow'}))"
    )
    assert found.rstrip().endswith("LOADED")


def test_a_plan_always_fits_its_own_budget(tmp_path: Path) -> None:
    """E4, E5: where the accountant that certifies is not the one that the ledger asks first."""
    from dpft_accounting import Ledger

    import dpft

    # At so small an epsilon PLD's grid overstates it, and PRV's bound is the one that is published.
    for rate, sigma, steps in ((1e-4, 1.0, 40), (0.01, 5.0, 10), (0.3, 0.7, 100)):
        made = dpft.plan(delta=1e-6, sample_rate=rate, expected_batch=2, noise_multiplier=sigma, steps=steps)
        with Ledger.open(tmp_path / f"{rate}.jsonl", "data", made.unit, made.budget) as ledger:
            run = ledger.run("train", made.mechanism)
            assert run.remaining == steps


def test_a_plan_survives_its_file() -> None:
    """E2: what a resumed run reads back is the same promise."""
    import dpft
    from dpft.errors import InputError

    made = dpft.plan(delta=1e-6, sample_rate=0.01, expected_batch=20, noise_multiplier=1.0, steps=10)
    assert dpft.Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    for damage in ("clip", "epsilon", "unit"):
        broken = made.to_dict()
        del broken[damage]
        with pytest.raises(InputError):
            dpft.Plan.from_dict(broken)


SHAPE = ("--delta", "1e-6", "--examples", "10000", "--batch", "100", "--epochs", "1")


@pytest.mark.parametrize(
    ("options", "value", "limit"),
    [(("--advantage", "0.2"), "advantage", 0.2), (("--tpr", "0.05", "--fpr", "0.01"), "tpr", 0.05)],
)
def test_a_risk_can_be_asked_for_instead_of_epsilon(
    dpft: Any, options: tuple[str, ...], value: str, limit: float
) -> None:
    """The noise that is planned keeps the risk, and not by much."""
    from dpft_accounting import mechanism_from_dict, profile

    answer = dpft("plan", *SHAPE, *options, "--json")
    assert answer.code == 0, answer.err
    made = json.loads(answer.out)
    found = profile(mechanism_from_dict(made["mechanism"]), Unit.from_dict(made["unit"]))
    reached = found.advantage() if value == "advantage" else found.tpr(0.01)
    assert 0.97 * limit < reached <= limit


def test_a_search_can_be_planned(dpft: Any) -> None:
    """E5: each trial has more noise than a single run, and the whole search keeps epsilon."""
    single = json.loads(dpft("plan", *SHAPE, "--epsilon", "3", "--json").out)
    made = json.loads(dpft("plan", *SHAPE, "--epsilon", "3", "--mean-trials", "8", "--json").out)
    assert made["noise_multiplier"] > single["noise_multiplier"]
    assert made["epsilon"]["upper"] < made["search"]["epsilon"]["upper"] <= 3
    assert made["search"]["mechanism"]["base"] == made["mechanism"]
    text = " ".join(dpft("plan", *SHAPE, "--epsilon", "3", "--mean-trials", "8").out.split())
    assert "The best of K such trials, K geometric with mean 8" in text


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--advantage", "2"), "advantage"),
        (("--tpr", "0.1"), "fpr"),
        (("--advantage", "0.1", "--epsilon", "3"), "exactly one"),
        (("--advantage", "0.1", "--mean-trials", "3"), "--epsilon"),
        (("--epsilon", "3", "--mean-trials", "0"), "mean"),
    ],
)
def test_a_risk_or_search_that_makes_no_sense_is_refused(dpft: Any, options: tuple[str, ...], part: str) -> None:
    """F4."""
    answer = dpft("plan", *SHAPE, *options)
    assert answer.code == 2
    assert part in answer.err
    assert answer.err.count("\n") == 1


def test_time_and_memory_are_estimates_and_need_no_torch(dpft: Any, python: Any, local: Path) -> None:
    """Where the model's shape is at hand; the promise itself is the same."""
    known = ("--set", "model.source=FacebookAI/roberta-base")
    text = " ".join(dpft("plan", local, *known).out.split())
    assert text.count("(an estimate, training alone)") == 2
    assert "on one H100" in text
    plain, made = (json.loads(dpft("plan", local, *more, "--json").out) for more in ((), known))
    assert [one["machine"] for one in made.pop("estimates")] == ["CPU, 2 cores", "one H100"]
    assert made == plain
    found = python(
        "import sys\n"
        f"sys.argv = ['dpft', 'plan', {str(local)!r}, '--set', 'model.source=FacebookAI/roberta-base']\n"
        "from dpft.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print('LOADED', *sorted(set(sys.modules) & {'torch', 'transformers', 'datasets', 'pyarrow'}))"
    )
    assert found.rstrip().endswith("LOADED")

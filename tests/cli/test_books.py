"""``dpft account`` and ``dpft ledger``: what was, or would be, spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import Budget, BudgetExceeded, Gaussian, Ledger, PoissonGaussian, Unit, certify, verify

UNIT, MECHANISM = Unit("example", "add_remove"), PoissonGaussian(0.02, 1.1, 50)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """50 steps planned, 30 charged, 29 executed."""
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path, "letters", UNIT, Budget(8.0, 1e-6)) as books:
        run = books.run("train", MECHANISM)
        for _ in range(29):
            run.reserve(1)
            run.step()
        run.reserve(1)
    return path


def test_account_of_a_mechanism_is_the_librarys(dpft: Any) -> None:
    """E4, F5: the JSON is the certificate, every accountant in it."""
    options = ("--noise-multiplier", "1.1", "--sample-rate", "0.02", "--steps", "50", "--delta", "1e-6")
    answer = dpft("account", *options, "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert 0 < value.pop("risk")["advantage"] < 1
    assert value == json.loads(json.dumps(certify(MECHANISM, UNIT, 1e-6).to_dict()))
    table = dpft("account", *options).out
    assert all(name in table for name in ("PLD", "PRV", "RDP", "publish", "lower", "upper"))


def test_account_of_full_batches_is_the_closed_form(dpft: Any) -> None:
    """E4: and replace-one costs what twice the clip costs."""
    answer = dpft("account", "--noise-multiplier", "2", "--delta", "1e-6", "--json")
    expected = certify(Gaussian(2.0, 1), UNIT, 1e-6).bound.upper
    assert json.loads(answer.out)["bound"]["upper"] == expected
    twice = dpft(
        "account", "--noise-multiplier", "4", "--delta", "1e-6", "--adjacency", "replace", "--examples", "100", "--json"
    )
    assert json.loads(twice.out)["bound"]["upper"] == pytest.approx(expected, rel=1e-9)


def test_account_of_a_ledger_counts_what_was_charged(dpft: Any, ledger: Path) -> None:
    """E2, E3: 30 steps, not the 29 that were executed nor the 50 that were planned."""
    answer = dpft("account", ledger, "--json")
    value = json.loads(answer.out)
    assert answer.code == 0, answer.err
    assert value["delta"] == 1e-6
    assert value["epsilon"] == Ledger.read(ledger).spent(1e-6).to_dict()
    thirty = certify(MECHANISM.with_steps(30), UNIT, 1e-6).bound
    assert thirty.lower <= value["epsilon"]["upper"] <= thirty.upper * 1.001
    assert "at delta 1e-06" in dpft("account", ledger).out


def test_show_lists_runs_with_their_steps(dpft: Any, ledger: Path) -> None:
    """E5."""
    value = json.loads(dpft("ledger", "show", ledger, "--json").out)
    assert value["runs"]["train"].pop("epsilon_alone") == value["spent"]
    assert value["runs"] == {
        "train": {
            "mechanism": MECHANISM.to_dict(), "parts": ["all"], "planned": 50, "reserved": 30, "committed": 29,
        }
    }  # fmt: skip
    assert value["dataset"] == "letters"
    assert value["budget"] == {"epsilon": 8.0, "delta": 1e-6}
    assert value["spent"]["upper"] < 8
    text = " ".join(dpft("ledger", "show", ledger).out.split())
    for part in ("letters", "train", "30", "29", "of 8.0000 at delta 1e-06"):
        assert part in text


def test_verify_says_what_holds(dpft: Any, ledger: Path) -> None:
    """E2."""
    answer = dpft("ledger", "verify", ledger)
    assert answer.code == 0
    assert verify(ledger).head_sha256 in answer.out
    assert json.loads(dpft("ledger", "verify", ledger, "--json").out) == verify(ledger).to_dict()


@pytest.mark.parametrize("tamper", ["a digit", "a line less", "a line twice", "not a ledger"])
@pytest.mark.parametrize("command", [("ledger", "verify"), ("ledger", "show"), ("account",)])
def test_a_tampered_ledger_is_refused_with_3(dpft: Any, ledger: Path, command: tuple[str, ...], tamper: str) -> None:
    """E2: and the line is named."""
    lines = ledger.read_text().splitlines(keepends=True)
    if tamper == "a digit":
        lines[5] = lines[5].replace('"steps":1', '"steps":2')
    elif tamper == "a line less":
        del lines[6]
    elif tamper == "a line twice":
        lines.insert(6, lines[6])
    else:
        lines = ["hello\n"]
    ledger.write_text("".join(lines))
    answer = dpft(*command, ledger)
    assert answer.code == 3
    assert "ine " in answer.err
    assert answer.out == ""
    assert "Traceback" not in answer.err


def test_a_missing_ledger_is_an_error(dpft: Any) -> None:
    """F4."""
    for command in (("ledger", "verify"), ("ledger", "show"), ("account",)):
        answer = dpft(*command, "absent.jsonl")
        assert answer.code in (2, 3)
        assert "absent.jsonl" in answer.err


def test_looking_changes_nothing(dpft: Any, ledger: Path) -> None:
    """E4: reads do not mutate, and repeat themselves."""
    before = ledger.read_bytes()
    assert dpft("ledger", "show", ledger).out == dpft("ledger", "show", ledger).out
    dpft("account", ledger)
    assert ledger.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((), "--noise-multiplier"),
        (("--noise-multiplier", "1"), "--delta"),
        (("--noise-multiplier", "1", "--delta", "2"), "delta"),
        (("--noise-multiplier", "-1", "--delta", "1e-5"), "sigma"),
        (("--noise-multiplier", "1", "--delta", "1e-5", "--sample-rate", "0"), "q"),
        (("--noise-multiplier", "1", "--delta", "1e-5", "--steps", "-3"), "steps"),
        (("--noise-multiplier", "1", "--delta", "1e-5", "--adjacency", "swap"), "adjacency"),
    ],
)
def test_wrong_options_of_account_are_named(dpft: Any, options: tuple[str, ...], part: str) -> None:
    """F4, E6."""
    answer = dpft("account", *options)
    assert answer.code == 2
    assert part in answer.err


def test_a_ledger_and_a_mechanism_together_are_refused(dpft: Any, ledger: Path) -> None:
    """F4: neither is ignored in silence."""
    answer = dpft("account", ledger, "--noise-multiplier", "1", "--delta", "1e-6")
    assert answer.code == 2
    assert "both" in answer.err


def test_the_books_of_a_data_set_are_made_by_a_command(dpft: Any, tmp_path: Path) -> None:
    """E5: one budget for all runs; a second creation would hide what was spent."""
    path = tmp_path / "books" / "letters.jsonl"
    options = ("--dataset", "letters", "--unit", "letter", "--examples", "5000", "--epsilon", "8", "--delta", "1e-5")
    made = dpft("ledger", "create", path, *options, "--part", "train", "--part", "validation")
    assert made.code == 0, made.err
    ledger = Ledger.read(path)
    assert (ledger.dataset_id, ledger.budget, ledger.parts) == ("letters", Budget(8.0, 1e-5), ("train", "validation"))
    assert ledger.unit == Unit("letter", "zero_out", 5000)
    assert not ledger.adaptive
    before = path.read_bytes()
    again = dpft("ledger", "create", path, *options)
    assert (again.code, path.read_bytes()) == (2, before)
    assert "already a file" in again.err
    adaptive = tmp_path / "adaptive.jsonl"
    assert dpft("ledger", "create", adaptive, *options, "--adaptive").code == 0
    assert Ledger.read(adaptive).adaptive


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--epsilon", "0", "--delta", "1e-5"), "epsilon"),
        (("--epsilon", "8", "--delta", "0.5", "--examples", "100"), "delta"),
        (("--epsilon", "8", "--delta", "1e-5", "--adjacency", "replace"), "n_public"),
        (("--epsilon", "8", "--delta", "1e-5", "--part", "all"), "part"),
        (("--epsilon", "8", "--delta", "1e-5", "--part", "a", "--part", "a"), "part"),
    ],
)
def test_books_that_make_no_sense_are_not_made(dpft: Any, tmp_path: Path, options: tuple[str, ...], part: str) -> None:
    """F4."""
    answer = dpft("ledger", "create", tmp_path / "x.jsonl", "--dataset", "d", *options)
    assert answer.code == 2
    assert part in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "x.jsonl").exists()


def test_what_remains_for_a_planned_run_is_shown(dpft: Any, ledger: Path) -> None:
    """E5: the noise that is shown is admitted, and a little less is not."""
    options = ("--sample-rate", "0.05", "--steps", "400")
    found = json.loads(dpft("ledger", "show", ledger, *options, "--json").out)["next_run"]["room"]
    with Ledger.reopen(ledger) as books:
        books.check(PoissonGaussian(0.05, found["noise_multiplier"], 400))
        with pytest.raises(BudgetExceeded):
            books.check(PoissonGaussian(0.05, 0.98 * found["noise_multiplier"], 400))
    assert found["epsilon"]["upper"] < 8
    assert "left for a run of 400 steps at sample rate 0.05: epsilon" in " ".join(
        dpft("ledger", "show", ledger, *options).out.split()
    )
    half = dpft("ledger", "show", ledger, "--steps", "400")
    assert half.code == 2
    assert "--sample-rate" in half.err


def test_several_ledgers_are_shown_one_after_the_other(dpft: Any, ledger: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    with Ledger.open(other, "films", UNIT, Budget(2.0, 1e-6)):
        pass
    values = json.loads(dpft("ledger", "show", ledger, other, "--json").out)
    assert [value["dataset"] for value in values] == ["letters", "films"]
    text = dpft("ledger", "show", ledger, other).out
    assert "no runs yet" in text
    assert text.index("letters") < text.index("films")

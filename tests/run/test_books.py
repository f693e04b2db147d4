"""E5: the budget spans runs. One ledger for a data set bounds every ``dpft run`` on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import Budget, Ledger, PoissonGaussian, Unit, epsilon, verify

UNIT = Unit("note", "add_remove")
ONE = PoissonGaussian(0.25, 1.0, 8)  # the recipe's plan
LINES = '[ledger]\nfile = "books.jsonl"\ndataset = "notes"\n'


@pytest.fixture
def books(place: Any) -> Path:
    """A budget for two runs of the recipe, not three; the recipe names it."""
    path: Path = place.folder / "books.jsonl"
    budget = Budget(round(epsilon(ONE.with_steps(20), UNIT, 1e-5).upper, 3), 1e-5)
    with Ledger.open(path, "notes", UNIT, budget):
        pass
    with (place.folder / "tiny.toml").open("a") as recipe:
        recipe.write(LINES)
    return path


def only_run(path: Path) -> Any:
    (run,) = Ledger.read(path).runs().values()
    return run


def test_a_run_is_charged_whole_and_confirmed(place: Any, books: Path) -> None:
    answer = place.dpft("run", "tiny.toml")
    assert answer.code == 0, answer.err
    run = only_run(books)
    assert (run.mech, run.reserved, run.committed) == (ONE, 8, 8)
    assert verify(books).records == 4
    (name,) = Ledger.read(books).runs()
    assert name.startswith("tiny-")
    statement = json.loads((place.run / "privacy.json").read_text())
    assert statement["data_set_run"] == name
    assert any(name in item for item in statement["not_covered"])


def test_the_third_run_is_refused_before_anything_is_computed(place: Any, books: Path) -> None:
    for number in range(2):
        assert place.dpft("run", "tiny.toml", "--out", f"runs/{number}").code == 0
    before = books.read_bytes()
    (place.folder / "records.csv").unlink()  # nothing may need the records any more
    answer = place.dpft("run", "tiny.toml", "--out", "runs/2")
    assert answer.code == 3
    assert "the total would be epsilon" in answer.err
    assert books.read_bytes() == before
    assert not (place.folder / "runs" / "2" / "ledger.jsonl").exists()


def test_an_interrupted_run_is_charged_once(place: Any, books: Path) -> None:
    """G4: resuming costs nothing more in the data set's books; the plan was charged whole."""
    (place.folder / "records.csv").rename(place.folder / "away.csv")
    assert place.dpft("run", "tiny.toml").code != 0  # charged, then no records to read
    assert only_run(books).reserved == 8
    (place.folder / "away.csv").rename(place.folder / "records.csv")
    answer = place.dpft("run", "tiny.toml", "--resume")
    assert answer.code == 0, answer.err
    run = only_run(books)
    assert (run.reserved, run.committed) == (8, 8)


def test_a_copied_folder_cannot_be_finished_on_the_same_charge(place: Any, books: Path) -> None:
    (place.folder / "records.csv").rename(place.folder / "away.csv")
    assert place.dpft("run", "tiny.toml").code != 0
    (place.folder / "away.csv").rename(place.folder / "records.csv")
    shutil.copytree(place.run, place.folder / "runs" / "copy")
    assert place.dpft("run", "tiny.toml", "--resume").code == 0
    answer = place.dpft("run", "tiny.toml", "--resume", "--out", "runs/copy")
    assert answer.code == 3
    assert "copy of another" in answer.err
    copied = place.folder / "runs" / "copy"
    assert not (copied / "adapter").exists()
    assert not (copied / "privacy.json").exists()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("ledger.dataset=films", "keeps the books of 'notes'"),
        ("data.unit=letter", "protects each note"),
        ("ledger.file=absent.jsonl", "absent.jsonl"),
        ("ledger.part=validation", "among those that the ledger was created with"),
    ],
)
def test_other_books_are_refused(place: Any, books: Path, change: str, part: str) -> None:
    before = books.read_bytes()
    answer = place.dpft("run", "tiny.toml", "--set", change)
    assert answer.code in (2, 3)
    assert part in answer.err
    assert answer.err.count("\n") == 1
    assert books.read_bytes() == before


def test_a_run_waits_for_its_turn_and_gives_up_in_the_end(
    place: Any, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpft.books._PATIENCE", 0.2)
    with Ledger.reopen(books):
        answer = place.dpft("run", "tiny.toml")
    assert answer.code == 3
    assert "Another process holds the ledger" in answer.err
    assert only_run_or_none(books) is None


def only_run_or_none(path: Path) -> Any:
    return next(iter(Ledger.read(path).runs().values()), None)

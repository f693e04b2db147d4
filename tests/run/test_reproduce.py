"""``dpft reproduce`` with real runs of a tiny model."""

from __future__ import annotations

import json
from typing import Any

EXPECTED = (
    "[evaluate]\npublic = true\n"
    '[expected]\nsource = "Somebody 2022"\nmetric = "accuracy"\n'
    'private = { value = 83.5, provenance = "verified (abstract)" }\n'
)


def test_runs_table_and_picture(place: Any) -> None:
    """The private run is what ``dpft run`` makes, its twin says what it is, and a second call finds both finished."""
    recipe = place.folder / "tiny.toml"
    recipe.write_text(recipe.read_text() + EXPECTED)
    answer = place.dpft("reproduce", "tiny.toml", "--out", "out", "--set", "privacy.steps=2")
    assert answer.code == 0, answer.err
    home = place.folder / "out" / "tiny"
    made = json.loads((home / "private" / "privacy.json").read_text())
    assert made["steps_charged"] == 2
    assert json.loads((home / "not-private" / "privacy.json").read_text())["private"] is False
    table = (place.folder / "out" / "reproduce.md").read_text()
    assert "| tiny | accuracy | 83.5 |" in table
    assert f"{made['trained_parameters']['count']:,}" in table
    assert (place.folder / "out" / "reproduce.svg").is_file()
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    again = place.dpft("reproduce", "tiny.toml", "--out", "out", "--set", "privacy.steps=2", "--json")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    (found,) = json.loads(again.out)
    assert found["epsilon"] == made["epsilon"]["upper"]
    assert all(0 <= found[side]["value"] <= 100 for side in ("private", "not_private"))


def test_a_run_that_fails_is_an_exit_code_and_a_sentence(place: Any) -> None:
    answer = place.dpft("reproduce", "tiny.toml", "--out", "out", "--no-nonprivate", "--set", "model.source=./missing")
    assert answer.code == 1
    assert "error: tiny: " in answer.err
    assert "Traceback" not in answer.err


def test_a_dry_run_reads_no_record(place: Any) -> None:
    (place.folder / "records.csv").unlink()
    answer = place.dpft("reproduce", "tiny.toml", "--dry-run", "--out", "out", "--json")
    assert answer.code == 0, answer.err
    (found,) = json.loads(answer.out)
    assert found["parameters"] == 162  # two pairs of rank 2 at width 16, and a head of 2 x 17
    assert found["plan"]["steps"] == 8
    assert not list((place.folder / "out").glob("tiny*"))

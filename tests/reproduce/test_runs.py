"""Many runs in a row: what is finished stays, what was begun goes on, one failure stops no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpft.config import Recipe
from dpft.errors import InputError, TrainingError
from dpft.reproduce.picture import draw
from dpft.reproduce.results import Result, Side
from dpft.reproduce.runs import run_all
from dpft.reproduce.tables import RUN, markdown, run_rows

RECIPE = """
name = "{name}"
[data]
source = "csv"
path = "absent.csv"
labels = ["a", "b"]
unit = "note"
[model]
source = "./absent"
[method]
name = "lora"
[privacy]
noise_multiplier = 1.0
delta = 1e-6
examples = 1000
expected_batch = 10
steps = 5
[evaluate]
public = {public}
[expected]
source = "Somebody 2022"
metric = "accuracy"
private = {{ value = 83.5, provenance = "verified (abstract)" }}
nonprivate = {{ value = 87.6, provenance = "unverified (memory)" }}
epsilon_claimed = {{ value = 6.7, provenance = "verified (abstract)" }}
parameters = {{ value = 1234, provenance = "computed" }}
"""


class Fake:
    """Runs that leave what a run leaves, without training. ``broken`` names raise; ``stops`` stop once half-way."""

    def __init__(self, broken: dict[str, Exception] | None = None, stops: tuple[str, ...] = ()) -> None:
        self.broken, self.stops = broken or {}, set(stops)
        self.calls: list[tuple[str, str, bool]] = []

    def __call__(self, recipe: Recipe, folder: Path, resume: bool) -> None:
        self.calls.append((recipe.name, folder.name, resume))
        assert recipe.privacy.enabled is (folder.name == "private")
        (folder / "run.toml").write_text("")
        if recipe.name in self.broken:
            raise self.broken[recipe.name]
        (folder / "ledger.jsonl").write_text("")
        if recipe.name in self.stops:
            self.stops.remove(recipe.name)
            raise TrainingError("Stopped after step 2 of 5.")
        value = 0.8125 if recipe.privacy.enabled else 0.8325
        row = {"name": "accuracy on held-out records", "value": value}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        made = {"epsilon": {"upper": 6.5}, "delta": 1e-6, "trained_parameters": {"count": 1234}}
        (folder / "privacy.json").write_text(json.dumps(made))


@pytest.fixture
def recipes(tmp_path: Path) -> list[Path]:
    found = []
    for name in ("one", "two"):
        found.append(tmp_path / f"{name}.toml")
        found[-1].write_text(RECIPE.format(name=name, public="true"))
    return found


def finish(recipes: list[Path], out: Path, fake: Fake, **options: Any) -> list[Result]:
    return list(run_all(recipes, [], out, fake, **options))


def test_every_recipe_runs_with_and_without_privacy(recipes: list[Path], tmp_path: Path) -> None:
    fake = Fake()
    one, two = finish(recipes, tmp_path / "out", fake, device=lambda: "a device")
    sides = ("private", "not-private")
    assert fake.calls == [(name, side, False) for name in ("one", "two") for side in sides]
    assert one.twin is not None
    assert (one.private.value, one.twin.value, one.epsilon, one.parameters) == (81.25, 83.25, 6.5, 1234)
    assert (two.name, two.private.device, two.private.fault) == ("two", "a device", "")


def test_what_is_finished_does_not_run_again(recipes: list[Path], tmp_path: Path) -> None:
    first = finish(recipes, tmp_path / "out", Fake())
    fake = Fake()
    assert finish(recipes, tmp_path / "out", fake) == first
    assert fake.calls == []


def test_what_was_begun_goes_on_and_its_time_adds_up(recipes: list[Path], tmp_path: Path) -> None:
    fake = Fake(stops=("one",))
    stopped = finish(recipes, tmp_path / "out", fake)[0]
    assert "Stopped after step 2" in stopped.private.fault
    assert stopped.private.value is None
    fake.calls.clear()
    again = finish(recipes, tmp_path / "out", fake)[0]
    assert fake.calls == [("one", "private", True)]
    assert again.private.fault == ""
    assert again.private.seconds is not None
    assert stopped.private.seconds is not None
    assert again.private.seconds > stopped.private.seconds


def test_what_failed_before_its_first_step_starts_anew(recipes: list[Path], tmp_path: Path) -> None:
    finish(recipes, tmp_path / "out", Fake({"one": InputError("No such model.")}))
    fake = Fake()
    finish(recipes, tmp_path / "out", fake)
    assert fake.calls == [("one", "private", False), ("one", "not-private", False)]


def test_an_error_stops_no_other_run_and_quotes_no_record(recipes: list[Path], tmp_path: Path) -> None:
    recipes.append(tmp_path / "three.toml")
    recipes[-1].write_text("name = ")
    fake = Fake({"one": RuntimeError("a record's text")})
    one, two, three = finish(recipes, tmp_path / "out", fake)
    assert one.private.fault.startswith("RuntimeError was not foreseen")
    assert "record's text" not in json.dumps(one.to_dict())
    assert two.private.value == 81.25
    assert "isn't valid TOML" in three.private.fault


def test_twins_can_be_left_out_and_a_stop_ends_it(recipes: list[Path], tmp_path: Path) -> None:
    fake = Fake()
    assert finish(recipes, tmp_path / "out", fake, twins=False)[0].twin is None
    assert [side for _, side, _ in fake.calls] == ["private", "private"]
    fake.calls.clear()
    assert finish(recipes, tmp_path / "other", fake, stopped=lambda: bool(fake.calls)) != []
    assert fake.calls == [("one", "private", False)]


def test_nothing_is_told_of_records_that_are_not_public(tmp_path: Path) -> None:
    """F2: neither the score nor the time."""
    path = tmp_path / "secret.toml"
    path.write_text(RECIPE.format(name="secret", public="false"))
    (found,) = finish([path], tmp_path / "out", Fake(), device=lambda: "a device")
    assert found.private == found.twin == Side()
    assert found.epsilon == 6.5


def test_the_table_and_the_picture_hold_every_figure(recipes: list[Path], tmp_path: Path) -> None:
    found = finish(recipes, tmp_path / "out", Fake())
    lines = markdown(RUN, run_rows(found)).splitlines()
    assert len(lines) == 4
    start = "| one | accuracy | 83.5 | 81.25 | 87.6* | 83.25 | 6.7 | 6.5000 at 1e-06 | 1,234+ | 1,234 |"
    assert lines[2].startswith(start)
    made = draw(found, tmp_path / "picture")
    assert [path.suffix for path in made] == [".png", ".svg"]
    assert made[0].read_bytes().startswith(b"\x89PNG")
    svg = made[1].read_text()
    assert "<svg" in svg


def test_no_picture_without_figures(tmp_path: Path) -> None:
    assert draw([Result("one", None, Side(fault="No."), None)], tmp_path / "picture") == []
    assert list(tmp_path.iterdir()) == []

"""``dpft init``: the recipe holds what was asked, whatever the names; it loads; and no value was read for it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpft.config import load_recipe, parse_recipe
from dpft.data import local
from dpft.data.local import column_names
from dpft.engine.plan import plan_from
from dpft.errors import InputError
from dpft.init import Wishes, recipe_for, slug

ROOT = Path(__file__).parents[1]
SENTINEL = "SENTINEL-7d1f"
# What a recipe can hold: one line, no control characters, no spaces at the ends, valid Unicode.
NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), include_characters="\"'{}#=[]\\,$%"), min_size=1, max_size=20
).filter(lambda name: name == name.strip() and name.isprintable())
COLUMNS = st.lists(NAMES, min_size=3, max_size=6, unique=True)


def written(path: Path, columns: list[str]) -> Path:
    """A CSV with these columns and a row of sentinels."""
    buffer = io.StringIO()
    csv.writer(buffer).writerows([columns, [SENTINEL] * len(columns)])
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=COLUMNS, labels=st.lists(NAMES, min_size=2, max_size=4, unique=True), unit=NAMES, data=st.data())
def test_any_names_come_back_from_the_recipe(
    tmp_path: Path, columns: list[str], labels: list[str], unit: str, data: st.DataObject
) -> None:
    """I2: quotes, braces, Unicode: nothing that is written breaks out of its string or its comment."""
    text, label, group = data.draw(st.permutations(columns))[:3]
    wishes = Wishes(text=text, label=label, group=group, labels=tuple(labels), records=5_000, unit=unit)
    path = written(tmp_path / "x.csv", columns)
    recipe = parse_recipe(recipe_for(path, wishes, tmp_path / "x.toml").text)
    found = recipe.data
    assert (found.text, found.label, found.group, found.unit) == (text, label, group, unit)
    assert found.labels == tuple(labels)
    assert (found.source, found.path) == ("csv", str(path))


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return written(tmp_path / "letters.csv", ["text", "label", "patient", "answer"])


TASKS: list[dict[str, Any]] = [
    {"labels": ("a", "b")},
    {"task": "multilabel", "labels": ("a",)},
    {"task": "regression"},
    {"task": "token-classification", "labels": ("a", "b")},
    {"target": "answer"},
    {"task": "causal-lm"},
    {"task": "seq2seq", "target": "answer"},
    {"labels": ("a", "b"), "group": "patient", "text_pair": "answer"},
]


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("wishes", TASKS, ids=lambda w: "-".join([w.get("task", ""), *w]))
def test_every_task_gives_a_recipe_that_loads(letters: Path, wishes: dict[str, Any], public: bool) -> None:
    made = recipe_for(letters, Wishes(**wishes, records=3_000, public=public), Path("x.toml"))
    recipe = parse_recipe(made.text)
    assert made.left == ()
    assert recipe.data.task == wishes.get("task", "causal-lm" if "target" in wishes else "classification")
    assert recipe.data.unit == wishes.get("group", "record")
    assert recipe.evaluate.public is False
    assert (recipe.privacy.examples, recipe.data.heldout) == ((3_000, 0.0) if public else (None, 0.1))
    lines = [line for line in made.text.splitlines() if line and not line.startswith("[")]
    assert all("# " in line for line in lines)
    assert lines[0] == "# dpft run x.toml"


def test_the_recipe_can_be_planned_and_keeps_its_budget(letters: Path) -> None:
    recipe = parse_recipe(recipe_for(letters, Wishes(labels=("a", "b"), records=3_000, epsilon=2.0), Path("x")).text)
    made = plan_from(recipe.privacy, recipe.data.unit)
    assert made.epsilon.upper <= 2.0
    assert made.unit.adjacency == "add_remove"
    assert made.delta < 1 / 3_000
    # The held-out tenth does not train, so the rate is that of the rest.
    assert made.expected_batch_size / made.sample_rate == pytest.approx(2_700, rel=1e-3)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_no_value_is_read(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F1, F2: only names; what follows the header may be anything, and nothing of it is in the recipe."""
    path = tmp_path / f"x.{suffix}"
    values = {"text": SENTINEL, "label": SENTINEL}
    if suffix == "parquet":
        pq.write_table(pa.table({name: [value] for name, value in values.items()}), path)
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_: pytest.fail("values were read"))
    elif suffix == "csv":
        path.write_bytes(b"text,label\n" + SENTINEL.encode() + b',"\xff unclosed')
    else:
        path.write_bytes(json.dumps(values).encode() + b"\n{" + SENTINEL.encode() + b"\xff")
    made = recipe_for(path, Wishes(), Path("x.toml"))
    assert SENTINEL not in made.text
    assert "labels = []" in made.text
    assert column_names(local_source(suffix), path) == ("text", "label")


def local_source(suffix: str) -> str:
    return {"jsonl": "json"}.get(suffix, suffix)


def test_readers_see_the_columns_that_init_saw(tmp_path: Path) -> None:
    """The header is read by the code that reads records."""
    path = written(tmp_path / "x.csv", ["text", "label"])
    recipe = parse_recipe(recipe_for(path, Wishes(labels=(SENTINEL, "b")), Path("x.toml")).text)
    (row,) = local.local_rows(recipe.data, "path", str(path))
    assert tuple(row.values) == column_names("csv", path)


def test_labels_left_open_are_asked_for_and_refused_until_then(letters: Path, tmp_path: Path) -> None:
    made = recipe_for(letters, Wishes(records=900), Path("x.toml"))
    assert ["data.labels" in clause for clause in made.left] == [True]
    path = tmp_path / "open.toml"
    path.write_text(made.text)
    with pytest.raises(InputError, match=r"data\.labels: expected the names of at least 2 classes; add them"):
        load_recipe(path)
    assert load_recipe(path, ['data.labels=["a", "b"]']).data.labels == ("a", "b")


def test_a_size_that_was_assumed_is_said(letters: Path) -> None:
    assert "10,000 records" in recipe_for(letters, Wishes(labels=("a", "b")), Path("x.toml")).left[0]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"label": "lable"}, r'--label: letters\.csv has no column "lable"; did you mean "label"\? It has the columns'),
        ({"group": "person"}, r'--group: letters\.csv has no column "person"'),
        ({"task": "seq2seq"}, r'--target: letters\.csv has no column "target"'),
        ({"text": "label"}, r"data\.label: expected .* different columns"),
        ({"labels": ("a", "a")}, r"data\.labels: expected unique names"),
        ({"public": True}, "Expected --records with --records-are-public"),
        ({"records": 0}, "--records=0"),
        ({"records": 100, "delta": 0.01}, r"--delta=0\.01 .* below 1/records"),
        ({"epsilon": -1.0}, "epsilon=-1"),
        ({"unit": " x"}, r"data\.unit"),
    ],
)
def test_a_wrong_wish_is_one_sentence(letters: Path, wishes: dict[str, Any], message: str) -> None:
    """F4."""
    with pytest.raises(InputError, match=message) as caught:
        recipe_for(letters, Wishes(**wishes), Path("x.toml"))
    assert "\n" not in str(caught.value)
    assert SENTINEL not in str(caught.value)


@pytest.mark.parametrize("name", ["x.xlsx", "x", "x.csv.gz"])
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text,label\n")
    with pytest.raises(InputError, match=r"\.csv, \.json"):
        recipe_for(tmp_path / name, Wishes(), Path("x.toml"))


@given(st.text(max_size=150))
def test_a_runs_name_can_be_made_of_any_files(stem: str) -> None:
    rest = (ROOT / "recipes" / "quickstart.toml").read_text().replace('name = "quickstart"', f'name = "{slug(stem)}"')
    assert parse_recipe(rest).name == slug(stem)

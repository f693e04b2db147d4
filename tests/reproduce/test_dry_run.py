"""The recipes of Yu et al. 2022 are the published settings, and the dry run finds the published figures again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from dpft.config import Recipe, load_recipe
from dpft.counts import trained_numbers
from dpft.errors import InputError
from dpft.reproduce.dry import Dry, dry_run
from dpft.reproduce.find import find
from dpft.reproduce.tables import DRY, dry_rows, markdown
from dpft.shapes import config_of, shape_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "yu2022"
PATHS = sorted(FOLDER.glob("*.toml"))
REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "yu2022.json").read_text())
ROWS = {row["id"]: row for row in REFERENCE["recipes"]}
TASKS = {"SST-2": "sst2", "QNLI": "qnli", "QQP": "qqp", "MNLI": "mnli"}


def by_row(row: dict[str, Any]) -> Recipe:
    (recipe,) = [r for path in PATHS if (r := load_recipe(path)).expected and r.expected.row == row["id"]]
    return recipe


def test_every_cell_of_the_tables_has_a_recipe() -> None:
    """Two encoders, four tasks, four methods; four decoders, two data sets; and one with sources as units."""
    glue = {f"{m}-{t}-{k}" for m in ("roberta-base", "roberta-large") for t in TASKS.values()
            for k in ("adapter", "lora", "compacter", "full")}  # fmt: skip
    texts = {f"gpt2{size}-{t}-lora" for size in ("", "-medium", "-large", "-xl") for t in ("e2e", "dart")}
    assert {path.stem for path in PATHS} == glue | texts | {"gpt2-medium-e2e-lora-source"}
    assert {load_recipe(path).name for path in PATHS} == {f"yu2022-{path.stem}" for path in PATHS}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_recipe_is_its_row(row: dict[str, Any]) -> None:
    recipe = by_row(row)
    expected, privacy, optimizer = recipe.expected, recipe.privacy, recipe.optimizer
    assert expected is not None
    glue = row["task"] in TASKS
    assert recipe.model.source.rpartition("/")[2] == row["model"]
    assert (recipe.data.config or "") == TASKS.get(row["task"], "")
    assert recipe.method.name == ("full" if row["method"] == "full_dpsgd" else row["method"])
    for field, key in (("bottleneck", "bottleneck"), ("n", "n"), ("alpha", "alpha")):
        assert row[key] is None or getattr(recipe.method, field) == row[key]
    assert recipe.method.name != "lora" or getattr(recipe.method, "rank", None) == row["rank"]
    assert privacy.steps == row["steps"] or row["steps"] is None
    assert privacy.expected_batch == row["batch_size"] or row["batch_size"] is None
    assert privacy.noise_multiplier == row["noise_multiplier"] or row["noise_multiplier"] is None
    assert privacy.examples in (row["train_size"], 363_846)  # of QQP, where the authors' code counts three more
    assert privacy.delta == row["delta"] or (row["task"], privacy.delta) == ("QNLI", 1e-6)
    assert privacy.delta * (privacy.examples or 0) < 1
    grid = row["lr_grid"] or [row["lr"] or optimizer.lr]
    assert grid[0] <= optimizer.lr <= grid[-1]
    assert (optimizer.name, optimizer.weight_decay) == ("adamw", 0.01)
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-6)
    assert (optimizer.schedule, optimizer.warmup) == (("linear", 0.06) if glue else ("constant", 0.0))
    assert recipe.train.label_smoothing == (0.0 if glue else 0.1)
    assert recipe.data.separator == (" " if glue else "<|endoftext|> ")
    assert recipe.evaluate.public


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_its_figures_are_the_published_ones_with_their_provenance(row: dict[str, Any]) -> None:
    expected = by_row(row).expected
    assert expected is not None
    provenance = row["provenance"]
    for figure, key in (
        (expected.private, "value_private"),
        (expected.nonprivate, "value_nonprivate"),
        (expected.epsilon_claimed, "epsilon_claimed"),
        (expected.parameters, "trainable_params"),
        (expected.rate_claimed, "q"),
        (expected.noise_claimed, "noise_multiplier"),
    ):
        assert (figure.value if figure else None) == row[key], key
        if figure and provenance.get(key):
            assert figure.provenance == provenance[key].partition(";")[0], key
    if row["value_nonprivate_same_method"] is not None:
        assert expected.same_method is not None
        assert expected.same_method.value == row["value_nonprivate_same_method"]
    for also, key in ((expected.also_private, "private"), (expected.also_nonprivate, "nonprivate")):
        published = (row["other_metrics"] or {}).get(key) or {}
        found = also.model_dump(exclude_none=True, exclude={"provenance"}) if also else {}
        assert found == {name.removeprefix("val_"): v for name, v in published.items() if name != "bleu"}


@pytest.fixture(scope="module")
def dry(monkeypatch_module: pytest.MonkeyPatch) -> tuple[list[Dry], float]:
    start = time.process_time()
    return list(dry_run(PATHS, [])), time.process_time() - start


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield patch


def test_the_dry_run_of_the_paper_is_clean(dry: tuple[list[Dry], float]) -> None:
    """Parameter counts on the real shapes and epsilons by PLD equal the reference's, without a single error."""
    found, seconds = dry
    assert [one.faults for one in found] == [()] * len(PATHS)
    assert all(one.holds for one in found)  # every claim is within what is certified with Poisson batches
    assert all(len(one.cost) == 2 for one in found)
    assert seconds < 120


def test_every_recipe_is_an_accounting_row_of_the_reference(dry: tuple[list[Dry], float]) -> None:
    rows = [(r["noise_multiplier"], r["steps"], r["delta"], r["epsilon_pld"]) for r in REFERENCE["accountant"]]
    for one in dry[0]:
        plan = one.plan
        assert plan is not None
        match = [e for s, t, d, e in rows if (s, t, d) == (plan.noise_multiplier, plan.steps, plan.delta)]
        if one.path.stem.endswith("-source"):
            assert match == []
        else:
            assert one.row("pld")["upper"] == pytest.approx(match[0], rel=2e-3)
            assert one.row("prv")["lower"] <= match[0] + 1e-3


def test_closed_forms_equal_the_counts(dry: tuple[list[Dry], float]) -> None:
    for one in dry[0]:
        recipe = load_recipe(one.path)
        shape = shape_of(config_of(recipe.model.source) or {})
        assert shape is not None
        assert trained_numbers(recipe, shape) == one.parameters


def test_the_table_has_a_row_a_recipe(dry: tuple[list[Dry], float]) -> None:
    text = markdown(DRY, dry_rows(dry[0]))
    lines = text.splitlines()
    assert len(lines) == len(PATHS) + 2
    assert len({line.count("|") for line in lines}) == 1
    (mnli,) = [line for line in lines if "yu2022-roberta-large-mnli-lora " in line]
    for part in ("| 6.7 |", "6.2878", "1e-06", "6.286", "6,294,531+", "6,294,531 |"):
        assert part in mnli


def test_what_differs_from_the_published_is_an_error(tmp_path: Path) -> None:
    """A detector never seen to fire proves nothing."""
    text = (FOLDER / "roberta-base-sst2-compacter.toml").read_text()
    path = tmp_path / "bent.toml"
    path.write_text(text.replace("value = 67586", "value = 67587").replace("value = 5.7971", "value = 5.9"))
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    bent, bad = dry_run([path, broken], [])
    assert bent.faults[0] == "67,586 numbers train, and [expected] has 67,587."
    assert bent.faults[1].startswith("The epsilon by PLD is 5.79")
    assert "isn't valid TOML" in bad.faults[0]
    (changed,) = dry_run([FOLDER / "roberta-base-sst2-compacter.toml"], ["privacy.noise_multiplier=1.5"])
    assert any("noise multiplier" in fault for fault in changed.faults)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [(None, 41), ("yu2022/gpt2-*", 9), ("roberta-base-sst2", 4), ("*-compacter", 8), ("recipes/quickstart.toml", 1)],
)
def test_recipes_are_found(pattern: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = find(pattern)
    assert len(found) >= count if pattern is None else len(found) == count
    assert all(path.is_file() for path in found)


def test_no_recipe_is_an_error_that_names_the_pattern() -> None:
    with pytest.raises(InputError, match="no-such-thing"):
        find("no-such-thing")

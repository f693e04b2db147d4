"""Each task's own recipe, run whole on what packages carry: real models, real sentences. Minutes each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpft.config import load_recipe

ROOT = Path(__file__).parents[2]
# What the result has to beat: a constant answer, or the untrained model.
LOCAL = {
    "local/sentences": ("accuracy", 0.70),
    "local/pairs": ("accuracy", 0.55),
    "local/traits": ("F1", 0.50),
    "local/rating": ("correlation", 0.40),
    "local/words": ("accuracy", 0.80),
    "digits": ("accuracy", 0.20),  # a transformer from random weights on 1,437 images
}
LANGUAGE = ("local/reviews-lm", "local/seq2seq")


def run(name: str, out: Path) -> dict[str, float]:
    code = "from dpft.cli import main; main()"
    recipe = ROOT / "recipes" / f"{name}.toml"
    command = [sys.executable, "-c", code, "run", str(recipe), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    promised = load_recipe(recipe).privacy.epsilon
    assert promised is not None
    assert json.loads((out / "privacy.json").read_text())["epsilon"]["upper"] <= promised
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["name"].removesuffix(" on held-out records"): row["value"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
def test_a_recipe_learns_its_task_privately(name: str, tmp_path: Path) -> None:
    figure, floor = LOCAL[name]
    assert run(name, tmp_path / "run")[figure] > floor


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_knows_more_than_before(name: str, tmp_path: Path) -> None:
    found = run(name, tmp_path / "run")
    assert found["perplexity"] < 0.9 * found["perplexity before training"]


def test_every_local_recipe_is_run_by_one_of_these() -> None:
    local = {f"local/{path.stem}" for path in (ROOT / "recipes" / "local").glob("*.toml")}
    assert local | {"digits"} == {*LOCAL, *LANGUAGE}

"""Every recipe in the repository is valid, can be planned, and says how to run it."""

from pathlib import Path

import pytest

from dpft.config import load_recipe
from dpft.engine.plan import plan

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("**/*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_can_be_planned(path: Path) -> None:
    recipe = load_recipe(path)
    made = plan(**recipe.privacy.model_dump(), unit=recipe.data.unit)
    assert recipe.privacy.epsilon is None or made.epsilon.upper <= recipe.privacy.epsilon


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_first_line_is_the_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# dpft run recipes/{path.name}")

"""Every recipe in the repository is valid, can be planned, and says how to run it."""

import re
import shlex
from pathlib import Path

import pytest

from dpft.config import load_recipe
from dpft.peft.registry import METHODS
from dpft.reproduce.dry import planned
from dpft.suggest import remarks

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("**/*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_can_be_planned(path: Path) -> None:
    recipe = load_recipe(path)
    made = planned(recipe)  # many recipes have one mechanism, which takes seconds to certify
    assert recipe.privacy.epsilon is None or made.epsilon.upper <= recipe.privacy.epsilon
    assert path.parent.name != "local" or remarks(made) == ()  # our own advice, followed


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_first_line_is_the_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# dpft run {path.relative_to(ROOT)}")


def test_every_method_has_a_recipe() -> None:
    assert {load_recipe(path).method.name for path in RECIPES} == set(METHODS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_other_command_in_its_comments_can_be_planned_too(path: Path) -> None:
    """Lines such as ``#   dpft run FILE --set ...``, which may go on behind a backslash."""
    text = re.sub(r" \\\n# +", " ", path.read_text())
    for command in re.findall(rf"^#  +(dpft run {re.escape(str(path.relative_to(ROOT)))} .*)$", text, re.MULTILINE):
        words = shlex.split(command)[3:]
        overrides = [word.replace("FOLDER", "folder") for word in words if word != "--set"]
        recipe = load_recipe(path, overrides)
        planned(recipe)
        assert recipe != load_recipe(path)

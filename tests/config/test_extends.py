"""``extends``: one recipe over another, and ``[expected]``, which both may have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpft.config import Recipe, dump_recipe, load_recipe, parse_recipe
from dpft.errors import InputError

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
OWN = 'extends = "../base.toml"\nname = "own"\n[optimizer]\nlr = 5e-3\n'
EXPECTED = """
[expected]
source = "Somebody 2022"
metric = "accuracy"
private = { value = 83.5, provenance = "verified (abstract)" }
parameters = { value = 37634, provenance = "computed" }
also_private = { bleu = 63.8, provenance = "unverified (memory)" }
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``recipes/base.toml``, room for recipes in ``recipes/own``, and a file outside."""
    (tmp_path / "recipes" / "own").mkdir(parents=True)
    for place in ("recipes/base.toml", "outside.toml"):
        (tmp_path / place).write_text(QUICKSTART.read_text())
    return tmp_path


def read(tree: Path, text: str, *overrides: str) -> Recipe:
    (tree / "recipes" / "own" / "own.toml").write_text(text)
    return load_recipe(tree / "recipes" / "own" / "own.toml", overrides)


def refusal(tree: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        read(tree, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_own_fields_win_and_the_others_are_the_bases(tree: Path) -> None:
    recipe, base = read(tree, OWN), load_recipe(tree / "recipes" / "base.toml")
    assert (recipe.name, recipe.optimizer.lr, recipe.optimizer.head_lr) == ("own", 5e-3, base.optimizer.head_lr)
    assert recipe.model_copy(update={"name": base.name, "optimizer": base.optimizer}) == base


def test_an_override_comes_last(tree: Path) -> None:
    assert read(tree, OWN, "optimizer.lr=7.0", "data.max_length=32").optimizer.lr == 7.0


def test_what_is_written_is_resolved(tree: Path) -> None:
    """E6: ``run.toml`` stands alone."""
    recipe = read(tree, OWN + EXPECTED)
    assert "extends" not in dump_recipe(recipe)
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert recipe.expected is not None
    assert recipe.expected.private is not None
    assert (recipe.expected.private.value, recipe.expected.nonprivate) == (83.5, None)


def test_an_own_choice_takes_the_place_of_the_bases_other_one(tree: Path) -> None:
    recipe = read(tree, OWN + "[privacy]\nnoise_multiplier = 1.1\nsample_rate = 0.1\n")
    assert (recipe.privacy.epsilon, recipe.privacy.noise_multiplier) == (None, 1.1)
    assert (recipe.privacy.examples, recipe.privacy.epochs) == (None, load_recipe(QUICKSTART).privacy.epochs)


def test_another_method_brings_its_own_fields(tree: Path) -> None:
    assert read(tree, OWN + '[method]\nname = "bitfit"\n').method.name == "bitfit"
    assert read(tree, OWN + "[method]\nrank = 8\n").method.model_dump()["alpha"] == 4.0


@pytest.mark.parametrize(
    "named",
    [
        "../../outside.toml",
        "../../../../../../../../etc/hosts.toml",
        "/etc/passwd",
        "~/base.toml",
        "https://x.invalid/base.toml",
        "..\\\\base.toml",
        "../base.toml\\u0000",
        "../base",
        "../missing.toml",
        "link.toml",
        "..",
        "",
        "x" * 5000,
        "../" + "x" * 3000 + ".toml",
        "folder.toml",
        "loop.toml",
        "pipe.toml",
    ],
)
def test_a_base_from_elsewhere_is_refused(tree: Path, named: str) -> None:
    """I2, I4: a recipe that was sent by somebody reads no other file of the machine."""
    own = tree / "recipes" / "own"
    (own / "link.toml").symlink_to(tree / "outside.toml")
    (own / "loop.toml").symlink_to(own / "loop.toml")
    (own / "folder.toml").mkdir()
    os.mkfifo(own / "pipe.toml")
    message = refusal(tree, f'extends = "{named}"\n')
    assert message.startswith("extends: ") or "4096 characters" in message
    assert len(message) < 300


@pytest.mark.parametrize("value", ["3", "true", '["../base.toml"]', "{ path = 1 }", "1979-05-27"])
def test_extends_is_a_path(tree: Path, value: str) -> None:
    assert refusal(tree, f"extends = {value}\n").startswith("extends: expected the path")


def test_inheritance_is_one_level(tree: Path) -> None:
    assert "one level" in refusal(tree, 'extends = "own.toml"\n')
    (tree / "recipes" / "base.toml").write_text('extends = "other.toml"\n')
    assert "one level" in refusal(tree, OWN)


def test_a_recipe_without_a_file_extends_none() -> None:
    with pytest.raises(InputError, match="only a recipe that is a file"):
        parse_recipe(OWN)


def test_a_broken_base_is_refused_like_a_broken_recipe(tree: Path) -> None:
    (tree / "recipes" / "base.toml").write_text("name = ")
    assert "isn't valid TOML" in refusal(tree, OWN)
